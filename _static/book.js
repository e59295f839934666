// Colours as the system, light or dark; and search while one types.
"use strict";

// A page opened as a file may not read others, so its search shows titles only.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

document.addEventListener("DOMContentLoaded", () => {
  switchColours();
  // The theme makes what scrolls reachable by keyboard when the window changes: also when a part opens.
  document.addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);
  reachEquations();
  addEventListener("resize", reachEquations);
  quietMap();
  const field = document.querySelector("#pst-search-dialog input[name=q]");
  if (document.querySelector(".bd-search-container")) {
    document.querySelector(".bd-search-container input[name=q]").focus();
  } else if (field) {
    field.addEventListener("focus", () => searchAsTyped(field), { once: true });
  }
});

// Equations that scroll can be scrolled by keyboard, too.
function reachEquations() {
  for (const equation of document.querySelectorAll("div.math > :is(math, code)")) {
    const scrolls = equation.scrollWidth > equation.clientWidth;
    equation.toggleAttribute("tabindex", scrolls);
    if (scrolls) equation.setAttribute("tabindex", "0");
  }
}

// What the map says of a network covers others: it goes with Escape, until something is pointed at.
function quietMap() {
  const map = document.querySelector(".map-plot");
  if (!map) return;
  addEventListener("keydown", (event) => event.key === "Escape" && map.classList.add("map-quiet"));
  for (const type of ["pointermove", "focusin"]) {
    map.addEventListener(type, () => map.classList.remove("map-quiet"));
  }
}

// ---- colours ----------------------------------------------------------------------------------

function switchColours() {
  const root = document.documentElement.dataset;
  const button = document.querySelector(".theme-switch-button");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const show = () => {
    root.theme = root.mode !== "auto" ? root.mode : system.matches ? "dark" : "light";
    button?.setAttribute("aria-label", `Colours: ${names[root.mode]}`);
  };
  button?.addEventListener("click", () => {
    const modes = Object.keys(names);
    root.mode = modes[(modes.indexOf(root.mode) + 1) % modes.length];
    try {
      localStorage.setItem("mode", root.mode);
    } catch {
      // without storage the choice holds for this page
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

// ---- search -----------------------------------------------------------------------------------

const MOST_RESULTS = 8;

function load(source) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = document.documentElement.dataset.content_root + source;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${source} could not be loaded`));
    document.head.append(script);
  });
}

async function searchAsTyped(field) {
  const list = document.createElement("ul");
  list.className = "search-found";
  list.setAttribute("aria-live", "polite");
  list.setAttribute("aria-label", "Search results");
  field.form.after(list);
  let typed = field.value;
  field.addEventListener("input", () => (typed = field.value));
  await load("_static/language_data.js");
  await load("_static/searchtools.js"); // which empties all search fields
  await load("searchindex.js");
  field.value = typed;
  const find = () => list.replaceChildren(...found(field.value).map(entry));
  field.addEventListener("input", find);
  find();
}

// Pages that hold all words of the query, best first: [docname, title, anchor, ...] as Sphinx's
// own search page gets them.
function found(query) {
  if (query.trim().length < 2) return [];
  const results = Search._performSearch(...Search._parseQuery(query));
  return results.reverse().slice(0, MOST_RESULTS);
}

function entry([docname, title, anchor]) {
  const item = document.createElement("li");
  const link = item.appendChild(document.createElement("a"));
  const { LINK_SUFFIX } = DOCUMENTATION_OPTIONS;
  link.href = document.documentElement.dataset.content_root + docname + LINK_SUFFIX + anchor;
  link.textContent = title;
  return item;
}
