// Colours as the system, light or dark; the door to search.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  switchColours();
  keepFocus();
  // The theme makes what scrolls reachable by keyboard when the window changes: also when a part opens.
  document.addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);
  reachEquations();
  addEventListener("resize", reachEquations);
  followContents();
  showPlace();
  addEventListener("keydown", (event) => event.key === "Escape" && putReferencesAway());
  // On a narrow window the theme moves the side bar into a dialog when this is pressed.
  const opener = document.querySelector(".primary-toggle");
  opener?.addEventListener("click", () => requestAnimationFrame(showPlace));
  quietMap();
  prepareSearch();
});

// The theme takes the focus from a button that is pressed: the keyboard could not press it again, and
// what it opens could not give the focus back.
function keepFocus() {
  const own = ".theme-switch-button, .search-button, .primary-toggle, .secondary-toggle";
  for (const button of document.querySelectorAll(own)) button.blur = () => {};
}

// Equations that scroll can be scrolled by keyboard, too.
function reachEquations() {
  for (const equation of document.querySelectorAll("div.math > :is(math, code)")) {
    const scrolls = equation.scrollWidth > equation.clientWidth;
    equation.toggleAttribute("tabindex", scrolls);
    if (scrolls) equation.setAttribute("tabindex", "0");
  }
}

// Scroll the side bar, and only it, to the page that one is on.
function showPlace() {
  const link = document.querySelector(".bd-links [aria-current]");
  const bar = link?.closest(".bd-sidebar-primary");
  if (!bar || link.offsetTop + link.offsetHeight < bar.clientHeight) return;
  bar.scrollTop = link.offsetTop - bar.clientHeight / 2;
}

// What a citation shows, while one points at it or has come to it, goes until one does so anew.
function putReferencesAway() {
  for (const link of document.querySelectorAll(".bibtex-citation a:is(:hover, :focus)")) {
    link.classList.add("put-away");
    for (const leaving of ["pointerleave", "blur"]) {
      link.addEventListener(leaving, () => link.classList.remove("put-away"), { once: true });
    }
  }
}

// Mark in the contents the section that one reads: the last one that begins above a line. The line is
// a quarter of the window below its top, and sinks to its foot where the page ends. What a link has led
// to counts as read until it leaves the window.
function followContents() {
  const linkOf = new Map();
  for (const link of document.querySelectorAll("#page-contents a")) {
    const section = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (section) linkOf.set(section, link);
  }
  if (!linkOf.size) return;
  let goal, arrived;

  const top = (element) => element.getBoundingClientRect().top;
  const inWindow = (element) => top(element) > -1 && top(element) < innerHeight;

  function read() {
    const left = document.documentElement.scrollHeight - innerHeight - scrollY;
    const line = Math.max(innerHeight / 4, Math.min(scrollY, innerHeight - left));
    return [...linkOf.keys()].filter((section) => top(section) <= line).at(-1);
  }

  function mark() {
    if (goal && inWindow(goal)) arrived = true;
    else if (arrived) goal = null;
    let section = goal ?? read();
    while (section && !linkOf.has(section)) section = section.parentElement;
    for (const [of, link] of linkOf) {
      link.classList.toggle("active", of === section);
      if (of === section) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    for (const entry of document.querySelectorAll("#page-contents .toc-entry")) {
      entry.classList.toggle("active", entry.contains(linkOf.get(section) ?? null));
    }
  }

  function jump() {
    goal = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    arrived = false;
    mark();
  }

  let waiting = false;
  function markSoon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      mark();
    });
  }

  addEventListener("scroll", markSoon, { passive: true });
  addEventListener("resize", markSoon);
  addEventListener("hashchange", jump);
  document.addEventListener("click", (event) => {
    if (event.target.closest("a")?.href === location.href) jump(); // the address does not change
  });
  addEventListener("scrollend", () => {
    arrived = true; // going back leads to where one was before, not to what the address says
    mark();
  });
  jump();
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
  const paper = matchMedia("print");
  let printing = paper.matches;
  const show = () => {
    const chosen = root.mode !== "auto" ? root.mode : system.matches ? "dark" : "light";
    root.theme = printing ? "light" : chosen;
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
  const print = (now) => {
    printing = now;
    show();
    if (now) for (const image of document.images) image.loading = "eager"; // all go onto paper
  };
  paper.addEventListener("change", () => print(paper.matches));
  addEventListener("beforeprint", () => print(true)); // the query changes too late in some browsers
  addEventListener("afterprint", () => print(false));
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
