// Runs beside the page, in the browser's audio thread: hands on what the microphone gives, block by block.

const SAMPLES = 1024;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Float32Array(SAMPLES);
    this.filled = 0;
  }

  process([[channel]]) {
    if (!channel) return true; // the microphone is not connected yet
    this.samples.set(channel, this.filled);
    this.filled += channel.length;
    if (this.filled === SAMPLES) {
      this.port.postMessage(this.samples);
      this.filled = 0;
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
