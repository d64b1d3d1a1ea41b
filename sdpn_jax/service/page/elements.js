// Elements made of texts: whatever comes from people or files is text and never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with properties or attributes, and children that are elements or texts. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The same in SVG, where everything is an attribute. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A name in a box of its own, so that right-to-left ones do not turn what is beside them. */
export const nameOf = (name) => make("bdi", { className: "name" }, name);

export function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

export const byId = (id) => document.getElementById(id);

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** 0.4137 as 0.41, and with a true minus. */
export const score = (number) => number.toFixed(2).replace("-0.00", "0.00").replace("-", "−");

/** 83.26 seconds as 1:23.3. */
export function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  const rest = String((tenths % 600) / 10);
  const [whole, tenth = "0"] = rest.split(".");
  return `${Math.floor(tenths / 600)}:${whole.padStart(2, "0")}.${tenth}`;
}

/** Runs `work` for a button, which does nothing more until it is done; what goes wrong is said in `place`. */
export async function busy(button, place, work) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // and not `disabled`, which would lose the focus
  place.textContent = "";
  try {
    await work();
  } catch (error) {
    place.textContent = error.message;
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

/** Asks in the page's dialog, and tells whether the answer was yes. */
export function confirmed(question) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
