// "Live": the last seconds of the microphone, asked about again and again.

import { ask, formOf } from "./api.js";
import { clearLevel, hush, listen, noMicrophone, peakOf, showLevel, to16Bits, wavOf } from "./audio.js";
import { ranking, scale } from "./drawing.js";
import { byId } from "./elements.js";
import { verdictOf } from "./who.js";

const [WINDOW, EVERY, SHOWN] = [3, 1, 5]; // seconds heard, seconds between questions, voices
const QUIET = 0.003; // of full scale: nobody speaks

export function startLive() {
  const place = byId("live");
  const find = (selector) => place.querySelector(selector);
  const [button, level, error] = [byId("listen"), find(".level"), find(".error")];
  button.parentElement.hidden = noMicrophone() !== null;
  button.addEventListener("click", toggle);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && button.classList.contains("on")) hush();
  });

  async function toggle() {
    if (button.classList.contains("on")) return hush();
    const blocks = [];
    let [samples, rate, asking, isOver] = [0, 1, false, false];
    let timer;
    error.textContent = "";
    begin(true);
    say(["Listening …"]);
    try {
      await listen(heard, ended);
    } catch (trouble) {
      error.textContent = trouble.message;
      ended();
    }
    if (!isOver) timer = setInterval(question, 1000 * EVERY);

    function heard(block, blockRate) {
      rate = blockRate;
      blocks.push(block);
      samples += block.length;
      while (samples - blocks[0].length >= WINDOW * rate) samples -= blocks.shift().length;
      showLevel(level, block);
    }

    async function question() {
      if (asking || samples < EVERY * rate) return; // one on the way is enough
      if (blocks.every((block) => peakOf(block) < QUIET)) return show(["Nobody speaks."]);
      asking = true;
      try {
        const recording = { blob: wavOf(blocks.map(to16Bits), rate), name: "live.wav" };
        const answer = await ask("POST", "/identify", formOf([["recording", recording]]));
        error.textContent = "";
        if (!isOver) showAnswer(answer);
      } catch (trouble) {
        error.textContent = trouble.message;
      } finally {
        asking = false;
      }
    }

    function ended() {
      isOver = true;
      clearInterval(timer);
      begin(false);
      show(["Not listening."]);
    }
  }

  function begin(isListening) {
    button.classList.toggle("on", isListening);
    button.querySelector(".text").textContent = isListening ? "Stop" : "Listen";
    clearLevel(level);
  }

  function showAnswer(answer) {
    const [best] = answer.ranking;
    const pictures = best ? [scale(best.score, answer.threshold)] : [];
    show(verdictOf(answer), pictures, [ranking(answer.ranking.slice(0, SHOWN), answer.threshold)]);
  }

  function show(words, scales = [], rankings = []) {
    say(words);
    find(".scale-here").replaceChildren(...scales);
    find(".ranking-here").replaceChildren(...rankings);
  }

  /** Says it once: screen readers would read the same every second. */
  function say(words) {
    const verdict = find(".verdict");
    const text = words.map((word) => word.textContent ?? word).join("");
    if (verdict.textContent !== text) verdict.replaceChildren(...words);
  }
}
