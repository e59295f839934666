// What tests/site/test_browser.py measures in a page. Runs before the page's own scripts.
"use strict";

window.book = (() => {
  const shifts = [];
  const refused = [];
  const resting = new Map();
  const focusable = "a[href], button, input, summary, audio, video, [tabindex='0']";

  new PerformanceObserver((list) => {
    for (const { value, hadRecentInput, sources } of list.getEntries()) {
      if (!hadRecentInput) shifts.push({ value, nodes: sources.map(({ node }) => name(node)) });
    }
  }).observe({ type: "layout-shift", buffered: true });

  addEventListener("securitypolicyviolation", (event) => {
    refused.push(`${event.effectiveDirective}: ${event.blockedURI} ${event.sample}`);
  });

  function name(node) {
    const element = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    if (!element?.tagName) return "(removed)";
    const id = element.id ? `#${element.id}` : "";
    const classes = [...element.classList].map((c) => `.${c}`).join("");
    const text = element.textContent.trim().replace(/\s+/g, " ").slice(0, 30);
    return `${element.tagName.toLowerCase()}${id}${classes} "${text}"`;
  }

  function visible(element) {
    const box = element.getBoundingClientRect();
    const shown = element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    return shown && box.width > 1 && box.height > 1; // one pixel: only for screen readers
  }

  const all = (selector) => [...document.querySelectorAll(selector)].filter(visible);
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

  // ---- loading ---------------------------------------------------------------------------------

  // From top to bottom, as fast as frames are drawn, and back; then all pictures in sight are there.
  async function scroll() {
    for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight * 0.8) {
      scrollTo({ top: y, behavior: "instant" });
      await frame();
    }
    await pictures();
    scrollTo({ top: 0, behavior: "instant" });
    await frame();
  }

  async function pictures() {
    const late = new Promise((done) => setTimeout(done, 3000));
    await Promise.race([late, Promise.all(all("img").map((image) => image.decode().catch(() => {})))]);
    await document.fonts.ready;
  }

  // All pictures, also those that a reader has not come to.
  async function load() {
    for (const image of document.images) image.loading = "eager";
    await pictures();
  }

  // Distance of blocks from the top: what must not change when pictures and fonts arrive.
  function places() {
    return all("main :is(h1, h2, h3, p, table, figure, audio, video, pre)").map((element) => [
      name(element),
      Math.round(element.getBoundingClientRect().top + scrollY),
    ]);
  }

  // ---- layout ----------------------------------------------------------------------------------

  // What makes the page wider than the window.
  async function wide() {
    await frame();
    const { scrollWidth, clientWidth } = document.documentElement;
    if (scrollWidth <= clientWidth) return [];
    const beyond = [...document.body.querySelectorAll("*")].filter((element) => {
      const box = element.getBoundingClientRect();
      return box.width && box.right > clientWidth + 1 && !inScroller(element, clientWidth);
    });
    const names = beyond.filter((e) => !beyond.includes(e.parentElement)).map(name);
    return [`${scrollWidth} > ${clientWidth}`, ...names.slice(0, 5)];
  }

  function inScroller(element, limit) {
    for (let box = element.parentElement; box && box !== document.body; box = box.parentElement) {
      const within = box.getBoundingClientRect().right <= limit + 1;
      if (within && getComputedStyle(box).overflowX !== "visible") return true;
    }
    return false;
  }

  function headings() {
    return all("main :is(h1, h2, h3, h4, h5, h6)").map((h) => [Number(h.tagName[1]), name(h)]);
  }

  // Transitions and animations that are longer than a hundredth of a second.
  function moving() {
    const seconds = (list) => Math.max(...list.split(",").map((t) => parseFloat(t) * (t.includes("ms") ? 1e-3 : 1)));
    const found = new Set();
    for (const element of document.querySelectorAll("*")) {
      for (const pseudo of [null, "::before", "::after"]) {
        const style = getComputedStyle(element, pseudo);
        const animated = style.animationName !== "none" && seconds(style.animationDuration) > 0.01;
        const smooth = style.scrollBehavior === "smooth";
        if (seconds(style.transitionDuration) > 0.01 || animated || smooth) {
          found.add(`${element.tagName.toLowerCase()}.${[...element.classList].join(".")}${pseudo ?? ""}`);
        }
      }
    }
    return [...found];
  }

  // ---- colours ---------------------------------------------------------------------------------

  const pen = () => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    return canvas.getContext("2d", { willReadFrequently: true });
  };
  let context;
  const known = new Map();

  // Red, green and blue in 0..1 and opacity of any colour that CSS knows.
  function rgba(colour) {
    if (!known.has(colour)) {
      context ??= pen();
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      known.set(colour, [...context.getImageData(0, 0, 1, 1).data].map((v) => v / 255));
    }
    return known.get(colour);
  }

  // Relative luminance, WCAG 2.2.
  function luminance(colour) {
    const [r, g, b] = rgba(colour).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function background(element) {
    for (let box = element; box; box = box.parentElement) {
      const colour = getComputedStyle(box).backgroundColor;
      if (rgba(colour)[3] > 0.5) return colour;
    }
    return "white";
  }

  const brightness = () => luminance(background(document.querySelector("main h1")));

  // Text whose contrast is below 4.5; on paper, which is white, if so asked.
  function faint(paper = false) {
    const found = new Set();
    for (const element of all("main :is(p, li, td, th, h1, h2, h3, a, code, pre, pre span, summary)")) {
      if (![...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
      const [a, b] = [
        luminance(getComputedStyle(element).color),
        paper ? 1 : luminance(background(element)),
      ].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.45) found.add(`${name(element)} in ${name(element.parentElement)}`);
    }
    return [...found].slice(0, 8);
  }

  // ---- keyboard --------------------------------------------------------------------------------

  const look = (element) => {
    const style = getComputedStyle(element);
    return { shadow: style.boxShadow, opacity: style.opacity };
  };

  function rest() {
    for (const element of document.querySelectorAll(focusable)) resting.set(element, look(element));
  }

  // The element that has the focus and what is wrong with how that shows.
  function focused() {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
    const shadowed = style.boxShadow !== "none" && style.boxShadow !== resting.get(element)?.shadow;
    const faults = [];
    if (!outlined && !shadowed) faults.push("no ring");
    if (!visible(element)) faults.push("not visible");
    if (box.bottom < 0 || box.top > innerHeight || box.right < 0 || box.left > innerWidth) {
      faults.push("outside the window");
    }
    const label = element.getAttribute("aria-label") || element.textContent.trim() || element.title;
    return { name: name(element), label: label.slice(0, 60), tag: element.tagName.toLowerCase(), faults };
  }

  return {
    shifts, refused, scroll, load, places, wide, headings, moving, brightness, faint, rest, focused,
  };
})();
