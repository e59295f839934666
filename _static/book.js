// Colours as the system, light or dark; the door to search.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  switchColours();
  // The theme makes what scrolls reachable by keyboard when the window changes: also when a part opens.
  document.addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);
  reachEquations();
  addEventListener("resize", reachEquations);
  prepareSearch();
});

// Equations that scroll can be scrolled by keyboard, too.
function reachEquations() {
  for (const equation of document.querySelectorAll("div.math > :is(math, code)")) {
    const scrolls = equation.scrollWidth > equation.clientWidth;
    equation.toggleAttribute("tabindex", scrolls);
    if (scrolls) equation.setAttribute("tabindex", "0");
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

// search.js, the engine and its index are loaded when search is opened. A page opened as a file may
// not load them: from there search is Sphinx's own page.
function prepareSearch() {
  const page = document.querySelector(".bd-search-container");
  const dialog = document.querySelector("#pst-search-dialog");
  const file = location.protocol === "file:";
  page?.querySelector("input[name=q]").focus();
  if (page && file) {
    sphinxSearch();
  } else if (page) {
    import("./search.js").then((search) => search.onPage(page)).catch(sphinxSearch);
  } else if (dialog && !file) {
    const open = () => import("./search.js").then((search) => search.inDialog(dialog));
    dialog.addEventListener("focusin", open, { once: true });
  }
}

async function sphinxSearch() {
  document.querySelector("main .search-status").textContent = "";
  globalThis.SPHINX_HIGHLIGHT_ENABLED = false;
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; // would read each page that is found
  for (const name of ["_static/language_data.js", "_static/searchtools.js", "searchindex.js"]) {
    const script = document.createElement("script");
    script.src = document.documentElement.dataset.content_root + name;
    document.head.append(script);
    await new Promise((loaded) => script.addEventListener("load", loaded));
  }
}
