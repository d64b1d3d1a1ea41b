// Pictures of recordings and scores. Colours are the style sheet's, so that they follow the theme.

import { draw, make, nameOf, score, table } from "./elements.js";

const COLUMNS = 400; // of a waveform
const MAP = { width: 400, height: 300, margin: 24, letter: 7.5, line: 16 }; // in units of the drawing
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/** The smallest and largest of 16-bit samples in each of a few hundred columns, in [-1, 1]. */
export function extremesOf(blocks) {
  const length = blocks.reduce((sum, block) => sum + block.length, 0);
  const columns = Math.min(COLUMNS, length);
  const minima = new Array(columns).fill(0);
  const maxima = new Array(columns).fill(0);
  let at = 0;
  for (const block of blocks) {
    for (const sample of block) {
      const column = Math.floor((at / length) * columns);
      minima[column] = Math.min(minima[column], sample / 32768);
      maxima[column] = Math.max(maxima[column], sample / 32768);
      at += 1;
    }
  }
  return { minima, maxima };
}

/** A waveform as an SVG, stretched to the width it gets. */
export function waveform({ minima, maxima }) {
  const top = maxima.map((y, x) => `${x},${-y}`);
  const bottom = minima.map((y, x) => `${x},${-y + 0.01}`).reverse(); // never thinner than a line
  const loudest = Math.max(...maxima, ...minima.map((y) => -y));
  return draw(
    "svg",
    {
      class: "waveform",
      viewBox: `0 -1 ${Math.max(1, minima.length - 1)} 2`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `Waveform; the loudest is ${Math.round(100 * loudest)} % of what fits`,
    },
    draw("polygon", { points: [...top, ...bottom].join(" ") }),
  );
}

/** What the network is given: the energy of frequency bands over time, low ones at the bottom. */
export function logMel({ frames, bins, values }) {
  const bytes = Uint8Array.from(atob(values), (letter) => letter.charCodeAt(0));
  const canvas = make("canvas", {
    className: "log-mel",
    width: frames,
    height: bins,
    role: "img",
    "aria-label": `Energy in ${bins} bands of frequency over time: what the network is given`,
  });
  const image = new ImageData(frames, bins);
  bytes.forEach((value, i) => {
    const pixel = (bins - 1 - (i % bins)) * frames + Math.floor(i / bins);
    image.data.set([...colourOf(value), 255], 4 * pixel);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function colourOf(value) {
  const place = (value / 255) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[below].map((low, i) => low + (place - below) * (VIRIDIS[below + 1][i] - low));
}

/** Where a cosine lies on a line from -1 to 1, in percent. */
const percent = (cosine) => `${50 + 50 * Math.max(-1, Math.min(1, cosine))}%`;

/** A score on a line from -1 to 1, with the threshold. */
export function scale(cosine, threshold) {
  const known = threshold !== null;
  const line = make("div", { className: "line" });
  const mark = make("span", { className: "mark" }, score(cosine));
  mark.style.left = percent(cosine);
  line.append(mark);
  if (known) {
    const border = make("span", { className: "threshold" }, `threshold ${score(threshold)}`);
    border.style.left = percent(threshold);
    line.append(border);
    line.style.setProperty("--threshold", percent(threshold));
  }
  const ends = ["−1", "0", "1"].map((text) => make("span", {}, text));
  const sides = make("div", { className: "sides" }, make("span", {}, "different"), make("span", {}, "same"));
  const beside = known ? `; the threshold is ${score(threshold)}` : "";
  const label = `Score ${score(cosine)} on a scale from −1 to 1${beside}`;
  return make(
    "div",
    { className: "scale", role: "img", "aria-label": label },
    line,
    make("div", { className: "ends" }, ...ends),
    ...(known ? [sides] : []),
  );
}

/** Names with their scores as bars from zero; the threshold goes through all of them. */
export function ranking(rows, threshold) {
  const calibrated = rows.some((row) => row.probability !== null);
  const heads = ["Voice", "Score", ...(calibrated ? ["Probability"] : [])];
  const cells = rows.map((row) => [
    make("div", {}, nameOf(row.name), bar(row.score, threshold)),
    score(row.score),
    ...(calibrated ? [inPercent(row.probability)] : []),
  ]);
  const note = threshold === null ? "" : `; the upright line is the threshold, ${score(threshold)}`;
  const made = table(heads, cells);
  made.className = "ranking";
  made.append(make("caption", {}, `Bars begin at 0 on a line from −1 to 1${note}.`));
  return made;
}

function bar(cosine, threshold) {
  const filled = make("span", { className: "filled" });
  filled.style.left = percent(Math.min(0, cosine));
  filled.style.width = `${50 * Math.min(1, Math.abs(cosine))}%`;
  const track = make("span", { className: "bar", "aria-hidden": "true" }, filled);
  if (threshold !== null) {
    const border = make("span", { className: "border" });
    border.style.left = percent(threshold);
    track.append(border);
  }
  return track;
}

/** 0.934 as 93 %, and never as 0 or 100. */
export function inPercent(probability) {
  if (probability === null) return "";
  const rounded = Math.round(100 * probability);
  if (rounded < 1) return "under 1 %";
  return rounded > 99 ? "over 99 %" : `${rounded} %`;
}

/** Enrolled voices, each at its place, and the last recording if it is known; names that find no room are left out. */
export function map(voices, recording) {
  const unit = MAP.height / 2 - MAP.margin; // the same across and up; what is wider is room for names
  const place = ([x, y]) => [MAP.width / 2 + x * unit, MAP.height / 2 - y * unit];
  const picture = draw("svg", { viewBox: `0 0 ${MAP.width} ${MAP.height}`, class: "map", role: "img" });
  const spots = voices.map((voice) => ({ name: voice.name, at: place(voice.position) }));
  const taken = [];
  if (recording) {
    const [x, y] = place(recording);
    picture.append(draw("path", { class: "recording", d: `M${x} ${y - 9}l9 9-9 9-9-9z` }));
    spots.unshift({ name: "this recording", at: [x, y] });
  }
  for (const {
    at: [x, y],
  } of spots)
    taken.push([x - 6, y - 6, x + 6, y + 6]);
  spots.forEach((spot, i) => {
    const [x, y] = spot.at;
    const isRecording = recording && i === 0;
    if (!isRecording) picture.append(draw("circle", { cx: x, cy: y, r: 5 }, draw("title", {}, spot.name)));
    const text = shortened(spot.name);
    const box = roomFor(text, x, y, taken);
    if (!box) return;
    taken.push(box);
    picture.append(draw("text", { x: box[0], y: box[3] - 4, class: isRecording ? "recording" : "" }, text));
  });
  picture.setAttribute("aria-label", describe(voices, recording));
  return picture;
}

const shortened = (name) => ([...name].length > 18 ? `${[...name].slice(0, 17).join("")}…` : name);

/** A box [left, top, right, bottom] for a text beside a point that meets none of those taken, or undefined. */
function roomFor(text, x, y, taken) {
  const width = MAP.letter * [...text].length;
  const boxes = [
    [x + 12, y - 8],
    [x - 12 - width, y - 8],
    [x - width / 2, y - 12 - MAP.line],
    [x - width / 2, y + 12],
  ].map(([left, top]) => [left, top, left + width, top + MAP.line]);
  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const fits = (box) => box[0] >= 0 && box[2] <= MAP.width && box[1] >= 0 && box[3] <= MAP.height;
  return boxes.find((box) => fits(box) && !taken.some((other) => meets(box, other)));
}

export const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

function describe(voices, recording) {
  if (!recording) return `Map of ${voices.length} voices; the table below has their places`;
  const order = [...voices].sort((a, b) => distance(a.position, recording) - distance(b.position, recording));
  const nearest = order
    .slice(0, 3)
    .map((voice) => voice.name)
    .join(", ");
  return `Map of ${voices.length} voices; nearest to this recording: ${nearest}`;
}
