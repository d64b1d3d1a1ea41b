// The microphone, and WAV files of what it heard.

const AS_IT_IS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }; // they change voices
const HEADER = 44; // bytes of a WAV's
const FLOOR = 60; // dB under full scale: where the level meter begins

const TROUBLES = {
  NotAllowedError: "The browser does not let this page use the microphone. Allow it beside the address, and try again.",
  NotFoundError: "No microphone was found. Plug one in and try again, or give a file.",
  NotReadableError: "The microphone cannot be used: perhaps another program holds it.",
};

let turn = 0;
let release = () => {};

/** Why there is no microphone and what to do, or null if there may be one. */
export function noMicrophone() {
  if (!window.isSecureContext) {
    return (
      "Browsers let pages use the microphone only over https or on localhost, so recording is off here. Open this " +
      `page as http://localhost:${location.port || 80} on the machine that runs the service, or through an SSH ` +
      "tunnel (ssh -L), or give the service a certificate. Files work all the same."
    );
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    return "This browser cannot record for pages. Another one can; files work all the same.";
  }
  return null;
}

/** Ends whoever listens: one at a time. */
export function hush() {
  turn += 1;
  release();
  release = () => {};
}

/** Calls `heard(samples, rate)` with what the microphone gives until `hush()`, and then `ended()`. */
export async function listen(heard, ended) {
  hush();
  const mine = turn;
  const stream = await microphone();
  const context = new AudioContext();
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    context.close();
  };
  try {
    await context.audioWorklet.addModule("/recorder.js");
    await context.resume();
  } catch (error) {
    close();
    throw error;
  }
  if (mine !== turn) {
    // hushed before it began
    close();
    return ended();
  }
  const node = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
  node.port.onmessage = ({ data }) => mine === turn && heard(data, context.sampleRate);
  // A node that leads nowhere may not be run; the recorder's output is silence.
  context.createMediaStreamSource(stream).connect(node).connect(context.destination);
  stream.getAudioTracks()[0].addEventListener("ended", () => mine === turn && hush()); // unplugged
  release = () => {
    close();
    ended();
  };
}

async function microphone() {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
  } catch (error) {
    throw new Error(TROUBLES[error.name] ?? `The microphone cannot be used: ${error.message}`);
  }
}

/** The loudest of the samples. */
export const peakOf = (samples) => samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);

/** Fills a level meter up to the samples' peak, in decibels. */
export function showLevel(meter, samples) {
  const decibels = 20 * Math.log10(peakOf(samples) || 1e-9);
  meter.firstElementChild.style.width = `${Math.max(0, 100 + (100 / FLOOR) * decibels)}%`;
}

export function clearLevel(meter) {
  meter.firstElementChild.style.width = "0";
}

/** Samples in [-1, 1] as integers of 16 bits. */
export const to16Bits = (samples) => Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767);

/** Blocks of 16-bit samples as a WAV file of one channel. */
export function wavOf(blocks, rate) {
  const bytes = 2 * blocks.reduce((sum, block) => sum + block.length, 0);
  const header = new DataView(new ArrayBuffer(HEADER));
  const text = (at, word) => [...word].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, HEADER - 8 + bytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // bytes of what follows
  header.setUint16(20, 1, true); // integers
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true); // bytes per second
  header.setUint16(32, 2, true); // bytes per sample of all channels
  header.setUint16(34, 16, true); // bits
  text(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...blocks], { type: "audio/wav" }); // typed arrays are little-endian wherever browsers run
}
