// "Who is this?": enrolled voices, their map, and who of them it is.

import { ask, formOf } from "./api.js";
import { hush } from "./audio.js";
import { distance, map, ranking } from "./drawing.js";
import { busy, byId, confirmed, count, make, nameOf, score, table } from "./elements.js";
import { need, showHints, showPicture, slot } from "./slot.js";

export function startWho(limits, mostRecordings) {
  const cards = Object.fromEntries(
    ["enrol", "identify", "voices", "map"].map((name) => [name, byId(`${name}-title`).closest(".card")]),
  );
  const errorOf = (name) => cards[name].querySelector(":scope > .error");
  const enrolment = slot(byId("enrol-slot"), "the voice to enrol", { limits, several: true });
  const question = slot(byId("identify-slot"), "the voice to identify", { limits, changed: forget });
  let voices = [];

  byId("enrol").addEventListener("submit", (event) => {
    event.preventDefault();
    busy(byId("enrol").querySelector("button.main"), errorOf("enrol"), enrol);
  });
  byId("identify").addEventListener("click", () => busy(byId("identify"), errorOf("identify"), identify));
  byId("delete-all").addEventListener("click", () => busy(byId("delete-all"), errorOf("voices"), removeAll));

  async function enrol() {
    hush();
    byId("enrol-message").textContent = "";
    need([enrolment], 1);
    const { recordings } = enrolment;
    if (recordings.length > mostRecordings) throw new Error(`At most ${mostRecordings} recordings are taken at once.`);
    const form = formOf(recordings.map((recording) => ["recording", recording]));
    form.append("name", byId("enrol-name").value);
    const answer = await ask("POST", "/enrol", form);
    byId("enrol-message").textContent = `${answer.name} is enrolled with ${count(answer.recordings, "recording")}.`;
    byId("enrol").reset();
    enrolment.clear();
    await refresh();
  }

  async function identify() {
    hush();
    need([question], 1);
    const [recording] = question.recordings;
    const answer = await ask("POST", "/identify?pictures=1", formOf([["recording", recording]]));
    const find = (selector) => cards.identify.querySelector(selector);
    showPicture(recording, answer.recordings[0]);
    find(".result").hidden = false;
    find(".verdict").replaceChildren(...verdictOf(answer));
    find(".ranking-here").replaceChildren(ranking(answer.ranking, answer.threshold));
    showHints(find(".hints"), question.recordings, answer.recordings);
    showMap(answer.position);
  }

  function forget() {
    cards.identify.querySelector(".result").hidden = true;
    showMap(null);
  }

  async function refresh() {
    ({ speakers: voices } = await ask("GET", "/speakers"));
    byId("nobody").hidden = voices.length > 0;
    byId("delete-all").hidden = voices.length < 2;
    byId("voices").replaceChildren(...voices.map(itemOf));
    cards.identify.querySelector(".result").hidden = true; // its ranking was of others
    showMap(null);
  }

  function itemOf(voice) {
    const button = make("button", { type: "button", "aria-label": `Delete ${voice.name}` }, "Delete");
    button.addEventListener("click", () => busy(button, errorOf("voices"), () => remove(voice.name)));
    const known = make("span", { className: "quiet" }, count(voice.recordings, "recording"));
    return make("li", { className: "row" }, nameOf(voice.name), known, button);
  }

  async function remove(name) {
    if (!(await confirmed(`Delete the voice of ${name}?`))) return;
    // Browsers take "." and ".." out of addresses, and what is left is another address.
    if (name === "." || name === "..") throw new Error("A browser cannot delete this name; another program can.");
    await ask("DELETE", `/speakers/${encodeURIComponent(name)}`);
    await afterDeletion(`${name} is deleted.`);
  }

  async function removeAll() {
    if (!(await confirmed(`Delete all ${voices.length} enrolled voices?`))) return;
    const { deleted } = await ask("DELETE", "/speakers");
    await afterDeletion(`${count(deleted, "voice is", "voices are")} deleted.`);
  }

  async function afterDeletion(message) {
    await refresh();
    byId("voices-message").textContent = message;
    byId("voices-title").focus(); // the button that had the focus is gone
  }

  function showMap(position) {
    const placed = voices.filter((voice) => voice.position);
    cards.map.hidden = placed.length === 0;
    byId("map").replaceChildren(map(placed, position));
    byId("map-table").replaceChildren(tableOf(placed, position));
  }

  return () => busy(byId("delete-all"), errorOf("voices"), refresh);
}

function tableOf(placed, position) {
  const heads = ["Voice", "Across", "Up", ...(position ? ["From this recording"] : [])];
  const rows = placed.map((voice) => [
    nameOf(voice.name),
    ...voice.position.map(score),
    ...(position ? [distance(voice.position, position).toFixed(2)] : []),
  ]);
  return table(heads, rows);
}

/** An answer of /identify in plain words: texts and elements. */
export function verdictOf({ speaker, ranking: [best], threshold }) {
  if (!best) return ["Nobody is enrolled yet."];
  if (threshold === null) return ["Most like ", nameOf(best.name), "; this model brings no threshold."];
  return speaker === null ? ["Nobody enrolled here."] : ["Probably ", nameOf(speaker), "."];
}
