// "Who spoke when?": a conversation as rows of stretches that can be heard.

import { ask, formOf } from "./api.js";
import { hush } from "./audio.js";
import { busy, byId, clock, count, make, nameOf, table } from "./elements.js";
import { need, showHints, slot } from "./slot.js";

const PIXELS_PER_SECOND = 6; // at least: long conversations are scrolled
const TICKS = [1, 2, 5, 10, 30, 60, 120, 300, 600]; // seconds between the marks of time
const MOST_TICKS = 6; // on the width of a telephone
const COLOURS = 6;
const CHECK = 40; // ms between looks at whether the stretch has ended

export function startWhen(limits) {
  const place = byId("when");
  const find = (selector) => place.querySelector(selector);
  const error = find(".card > .error");
  const player = new Audio();
  const conversation = slot(byId("when-slot"), "the conversation", {
    limits: { ...limits, seconds: 60 * limits.minutes },
    changed: forget,
  });
  let answer = null;
  let watch;

  byId("diarize").addEventListener("submit", (event) => {
    event.preventDefault();
    busy(byId("diarize").querySelector("button"), error, diarize);
  });
  byId("stop").addEventListener("click", stop);
  byId("rttm").addEventListener("click", () => download(answer, conversation.recordings[0].name));
  byId("timeline").addEventListener("keydown", move);

  function forget() {
    stop();
    find(".result").hidden = true;
  }

  async function diarize() {
    hush();
    need([conversation], 1);
    const [recording] = conversation.recordings;
    const form = formOf([["recording", recording]]);
    if (byId("speakers").value) form.append("speakers", byId("speakers").value);
    answer = await ask("POST", "/diarize", form);
    if (conversation.recordings[0] !== recording) return; // another one was chosen meanwhile
    player.src = recording.address;
    find(".result").hidden = false;
    find(".verdict").textContent = summaryOf(answer);
    byId("timeline").replaceChildren(...timelineOf(answer, play));
    byId("shares").replaceChildren(sharesOf(answer));
    byId("stretches").replaceChildren(stretchesOf(answer, play));
    showHints(find(".hints"), [recording], answer.recordings);
  }

  async function play(segment, button) {
    stop();
    player.currentTime = segment.start;
    watch = setInterval(() => follow(segment), CHECK);
    button.classList.add("playing");
    await player.play().catch((trouble) => {
      if (trouble.name !== "AbortError") error.textContent = "This browser cannot play this kind of file.";
    });
  }

  function follow(segment) {
    byId("timeline").style.setProperty("--played", `${(100 * player.currentTime) / answer.seconds}%`);
    if (player.currentTime >= segment.end || player.ended) stop();
  }

  function stop() {
    clearInterval(watch);
    player.pause();
    find(".playing")?.classList.remove("playing");
    byId("timeline").style.removeProperty("--played");
  }
}

function summaryOf({ speakers, seconds }) {
  if (!speakers.length) return `Nobody speaks in these ${clock(seconds)}.`;
  return `${count(speakers.length, "person speaks", "people speak")} in ${clock(seconds)}.`;
}

const stretch = ({ speaker, start, end }) => `${speaker}, ${clock(start)} to ${clock(end)}`;

/** A row of buttons for each speaker, and marks of time. */
function timelineOf(answer, play) {
  const names = answer.speakers.map(({ speaker }) => speaker);
  const at = (seconds) => `${(100 * seconds) / answer.seconds}%`;
  const tracks = names.map(() => make("div", { className: "track" }));
  answer.segments.forEach((segment, i) => {
    const row = names.indexOf(segment.speaker);
    const button = make("button", { type: "button", title: stretch(segment), "aria-label": stretch(segment) });
    button.className = `segment colour-${row % COLOURS}`;
    button.tabIndex = i === 0 ? 0 : -1; // one stop for the tab key, however many there are
    button.dataset.number = i;
    button.style.left = at(segment.start);
    button.style.width = at(segment.end - segment.start);
    button.addEventListener("click", () => {
      choose(button);
      play(segment, button);
    });
    tracks[row].append(button);
  });
  const ticks = make("div", { className: "ticks", "aria-hidden": "true" });
  const step = stepOf(answer.seconds);
  for (let second = 0; second < answer.seconds; second += step) {
    const tick = make("span", {}, clock(second).replace(/\.0$/, ""));
    tick.style.left = at(second);
    ticks.append(tick);
  }
  const rows = tracks.map((track, i) => make("div", { className: "track-row" }, nameOf(names[i]), track));
  const times = make("div", { className: "track-row" }, make("span", { className: "name" }), ticks);
  const width = `${PIXELS_PER_SECOND * answer.seconds}px`;
  for (const line of [...tracks, ticks]) line.style.minWidth = width;
  return [...rows, times];
}

function stepOf(seconds) {
  const least = Math.min(seconds / MOST_TICKS, 80 / PIXELS_PER_SECOND);
  return TICKS.find((step) => step >= least);
}

function choose(button) {
  byId("timeline").querySelector('[tabindex="0"]').tabIndex = -1;
  button.tabIndex = 0;
}

/** Arrow keys go from one stretch to the next in time. */
function move(event) {
  const now = Number(event.target.dataset.number);
  const last = byId("timeline").querySelectorAll(".segment").length - 1;
  const [before, after] = [Math.max(0, now - 1), Math.min(last, now + 1)];
  const goals = { ArrowLeft: before, ArrowUp: before, ArrowRight: after, ArrowDown: after, Home: 0, End: last };
  if (!(event.key in goals)) return;
  const goal = byId("timeline").querySelector(`[data-number="${goals[event.key]}"]`);
  event.preventDefault();
  choose(goal);
  goal.focus();
}

function sharesOf({ speakers, seconds }) {
  const share = (part) => `${Math.round((100 * part) / seconds)} %`;
  const rows = speakers.map((one) => [nameOf(one.speaker), clock(one.seconds), share(one.seconds)]);
  return table(["Speaker", "Speaks for", "Of the recording"], rows);
}

function stretchesOf({ segments }, play) {
  const rows = segments.map((segment) => {
    const button = make("button", { type: "button", "aria-label": `Play ${stretch(segment)}` }, "Play");
    button.addEventListener("click", () => play(segment, button));
    return [clock(segment.start), clock(segment.end), nameOf(segment.speaker), button];
  });
  return table(["From", "To", "Speaker", "Listen"], rows);
}

/** Segments in NIST's format RTTM, whose fields hold no spaces. */
function rttmOf({ segments }, recording) {
  const field = (text) => text.replace(/\s+/g, "_") || "_";
  const file = field(recording.replace(/\.[^.]*$/, ""));
  return segments
    .map(
      ({ start, end, speaker }) =>
        `SPEAKER ${file} 1 ${start.toFixed(3)} ${(end - start).toFixed(3)} <NA> <NA> ${field(speaker)} <NA> <NA>\n`,
    )
    .join("");
}

function download(answer, recording) {
  const address = URL.createObjectURL(new Blob([rttmOf(answer, recording)], { type: "text/plain" }));
  make("a", { href: address, download: recording.replace(/\.[^.]*$/, "") + ".rttm" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // the browser has it by then
}
