// Elements, and the words of strangers in them. Nothing here or elsewhere sets innerHTML: whatever a
// caption, a file name or an error says is a text node, and can be nothing else.

const SVG = "http://www.w3.org/2000/svg";
// Characters that turn the direction of writing, end a line or cannot be seen.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Somebody else's words: isolated from the text around them, with what cannot be seen named.
export function words(text) {
  const shown = String(text ?? "").replace(UNSEEN, (mark) =>
    mark === "\n" || mark === "\t" ? " " : `\u27e8U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`,
  );
  return el("bdi", { dir: "auto" }, shown);
}

export function replaceChildren(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

export function number(value, digits = 4) {
  if (!Number.isFinite(value)) return "not measured";
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

export function count(value) {
  return value.toLocaleString("en");
}

export function several(value, noun, plural = `${noun}s`) {
  return `${count(value)} ${value === 1 ? noun : plural}`;
}

export function hours(seconds) {
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(seconds < 36000 ? 2 : 0)} h`;
}

export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const whole = Math.floor(tenths / 10);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const text = parts.map((part) => String(part).padStart(2, "0")).join(":");
  return `${text.replace(/^00:/, "")}.${tenths % 10}`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, value)) / 3));
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}
