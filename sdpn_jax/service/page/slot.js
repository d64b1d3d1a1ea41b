// A place for recordings: from the microphone, chosen, or dropped; each can be heard, seen and removed.

import { clearLevel, hush, listen, noMicrophone, showLevel, to16Bits, wavOf } from "./audio.js";
import { extremesOf, logMel, waveform } from "./drawing.js";
import { byId, clock, count, make } from "./elements.js";

const MEGABYTE = 2 ** 20;
const BYTES_PER_SAMPLE = 2;
const LEAST = 0.1; // seconds

/**
 * A slot in the element `host`, which calls `changed()` when its recordings are others.
 *
 * `limits` are {seconds, megabytes} of one recording; `several` recordings are kept, or only the last.
 * Returns {recordings, show, clear, complain}: a recording is {blob, name, address, item}.
 */
export function slot(host, what, { limits, several = false, changed = () => {} }) {
  host.append(byId("slot").content.cloneNode(true));
  const find = (selector) => host.querySelector(selector);
  const [record, chooser, error] = [find(".record"), find("input"), find(".error")];
  const recordings = [];
  let recorded = 0; // numbers the recordings of the microphone

  record.setAttribute("aria-label", `Record ${what}`);
  record.hidden = noMicrophone() !== null;
  chooser.multiple = several;
  chooser.setAttribute("aria-label", `Choose ${several ? "files" : "a file"} for ${what}`);
  chooser.nextElementSibling.textContent = several ? "Choose files" : "Choose a file";
  record.addEventListener("click", toggle);
  chooser.addEventListener("change", () => take(chooser.files));
  takeDrops(find(".slot"), take);

  function complain(message) {
    error.textContent = message;
  }

  function take(files) {
    complain("");
    for (const file of several ? files : [...files].slice(0, 1)) {
      if (file.size > limits.megabytes * MEGABYTE) {
        complain(`${file.name} has ${Math.ceil(file.size / MEGABYTE)} MB; at most ${limits.megabytes} are taken.`);
      } else {
        add({ blob: file, name: file.name });
      }
    }
    chooser.value = ""; // the same file may be chosen again
  }

  function add(recording, extremes) {
    if (!several) drop();
    recording.address = URL.createObjectURL(recording.blob);
    recording.item = itemOf(recording, () => {
      remove(recording);
      (record.hidden ? chooser : record).focus();
    });
    if (extremes) recording.item.querySelector(".pictures").append(waveform(extremes));
    recordings.push(recording);
    find(".recordings").append(recording.item);
    changed();
  }

  function remove(recording) {
    recordings.splice(recordings.indexOf(recording), 1);
    recording.item.remove();
    URL.revokeObjectURL(recording.address);
    changed();
  }

  function drop() {
    [...recordings].forEach(remove);
  }

  async function toggle() {
    if (record.classList.contains("on")) return hush();
    complain("");
    const blocks = [];
    let samples = 0;
    let rate = 1;
    begin(true);
    try {
      await listen(heard, ended);
    } catch (trouble) {
      begin(false);
      complain(trouble.message);
    }

    function heard(block, blockRate) {
      rate = blockRate;
      blocks.push(to16Bits(block));
      samples += block.length;
      showLevel(find(".level"), block);
      const longest = longestAt(rate);
      find(".seconds").textContent = `${clock(samples / rate)} of at most ${clock(longest)}`;
      if (samples >= longest * rate) {
        hush();
        complain(`Recording ended: ${clock(longest)} is the longest.`);
      }
    }

    function ended() {
      begin(false);
      if (samples < LEAST * rate) return complain("That was too short.");
      recorded += 1;
      add({ blob: wavOf(blocks, rate), name: `microphone-${recorded}.wav` }, extremesOf(blocks));
    }
  }

  /** Seconds that fit into a recording from the microphone. */
  function longestAt(rate) {
    return Math.floor(Math.min(limits.seconds, (limits.megabytes * 1e6) / (BYTES_PER_SAMPLE * rate)));
  }

  function begin(isRecording) {
    record.classList.toggle("on", isRecording);
    record.querySelector(".text").textContent = isRecording ? "Stop" : "Record";
    record.setAttribute("aria-label", `${isRecording ? "Stop recording" : "Record"} ${what}`);
    find(".running").hidden = !isRecording;
    find(".seconds").textContent = "";
    clearLevel(find(".level"));
  }

  begin(false);
  return { recordings, clear: drop, complain };
}

function itemOf(recording, remove) {
  const size = make("span", { className: "quiet" }, `${Math.ceil(recording.blob.size / 1024)} kB`);
  const player = make("audio", { controls: true, preload: "metadata", src: recording.address });
  player.setAttribute("aria-label", `Listen to ${recording.name}`);
  const note = make("p", { className: "quiet", hidden: true }, "This browser cannot play it; the service may.");
  player.addEventListener("error", () => {
    player.hidden = true;
    note.hidden = false;
  });
  const removal = make("button", { type: "button", "aria-label": `Remove ${recording.name}` }, "Remove");
  removal.addEventListener("click", remove);
  const title = make("p", { className: "row" }, make("bdi", { className: "name" }, recording.name), size, removal);
  return make("li", {}, title, player, note, make("div", { className: "pictures" }));
}

function takeDrops(place, take) {
  const over = (isOver) => place.classList.toggle("over", isOver);
  place.addEventListener("dragover", () => over(true));
  place.addEventListener("dragleave", () => over(false));
  place.addEventListener("drop", (event) => {
    over(false);
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
}

/** Draws what the service saw of a recording. */
export function showPicture(recording, about) {
  if (!about.picture) return;
  const pictures = [waveform(about.picture), logMel(about.picture.log_mel)];
  recording.item.querySelector(".pictures").replaceChildren(...pictures);
}

const PLAIN = {
  "telephone bandwidth": "nothing above 4 kHz is heard, as over the telephone",
  clipped: "too loud: its peaks are cut off; speak more softly or farther from the microphone",
  "under one second": "under one second long; five are better",
};

/** What spoils recordings, in plain words, into a list. */
export function showHints(list, recordings, abouts) {
  const lines = abouts.flatMap(({ hints }, i) => hints.map((hint) => `${recordings[i].name}: ${PLAIN[hint] ?? hint}.`));
  list.replaceChildren(...lines.map((line) => make("li", {}, line)));
}

/** A sentence where recordings are missing, as an Error. */
export function need(slots, number) {
  const empty = slots.find(({ recordings }) => recordings.length < number);
  if (empty) throw new Error(slots.length > 1 ? "Give two recordings first." : "Give a recording first.");
}

export const lengthOf = (about) => count(Number(about.seconds.toFixed(1)), "second");
