// Elements. This is the only module that makes any. Text is set as text and never read as
// markup, whoever wrote it.

export const at = (id) => document.getElementById(id);

/// An element with attributes and children: elements, or anything else as text.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map(child));
  return element;
}

const child = (it) => (it instanceof Node ? it : visible(it));

/// A text in which what can't be seen is seen: control characters, and those that change the
/// direction of what follows them.
export function visible(text) {
  return String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (it) => {
    return `\\u{${it.codePointAt(0).toString(16)}}`;
  });
}

/// Sets an element's text, if it is another one: what is selected stays selected.
export function say(element, text) {
  const shown = visible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

/// Replaces an element's children, if what they are made from has changed.
const made = new WeakMap();
export function remake(element, from, children) {
  const key = JSON.stringify(from);
  if (made.get(element) === key) return;
  made.set(element, key);
  element.replaceChildren(...children());
}

export function show(element, is) {
  element.hidden = !is;
}
