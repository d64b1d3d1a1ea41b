// "Same voice?": two recordings, one score.

import { ask, formOf } from "./api.js";
import { hush } from "./audio.js";
import { inPercent, scale } from "./drawing.js";
import { busy, byId, score } from "./elements.js";
import { need, showHints, showPicture, slot } from "./slot.js";

const NEAR = 0.05; // of the threshold: too close to call

export function startSame(limits) {
  const place = byId("same");
  const find = (selector) => place.querySelector(selector);
  const forget = () => (find(".result").hidden = true);
  const slots = ["first", "second"].map((which, i) =>
    slot(byId(`same-${"ab"[i]}`), `the ${which} recording`, { limits, changed: forget }),
  );
  const error = find(":scope > .error");
  const button = byId("compare");
  button.addEventListener("click", () => busy(button, error, compare));

  async function compare() {
    hush();
    need(slots, 1);
    const recordings = slots.map((one) => one.recordings[0]);
    const answer = await ask("POST", "/verify?pictures=1", formOf(recordings.map((one, i) => ["ab"[i], one])));
    recordings.forEach((recording, i) => showPicture(recording, answer.recordings[i]));
    find(".result").hidden = false;
    find(".verdict").textContent = verdictOf(answer);
    find(".scale-here").replaceChildren(scale(answer.score, answer.threshold));
    showHints(find(".hints"), recordings, answer.recordings);
  }
}

/** An answer of /verify in plain words. */
function verdictOf({ score: cosine, threshold, probability }) {
  const numbers = probability === null ? `score ${score(cosine)}` : `probability ${inPercent(probability)}`;
  if (threshold === null) return `Score ${score(cosine)}. This model brings no threshold, so the verdict is yours.`;
  if (Math.abs(cosine - threshold) < NEAR) return `Too close to call (${numbers}).`;
  return `Probably ${cosine >= threshold ? "the same speaker" : "different speakers"} (${numbers}).`;
}
