// Search while one types, in the index that Pagefind has made of the pages (_ext/search_index.py).
// book.js loads this module when search is opened, and it loads the engine.

const GLUE = "~|"; // as in _ext/search_text.py: no space before this word on the page
const HIDDEN = "~-"; // this word is not on the page
const TIMES = "ẋ";
const STEMS = "al|ar|el|em|en|er|et|gn|ic|id|il|im|in|it|ll|nt|ol|om|on|or|th|um";
const AMERICAN = new RegExp(`([a-z](?:${STEMS}))iz(e|ing|ation|ab)`, "gi");
const IN_DIALOG = 8; // pages
const ON_PAGE = 30;
const SECTIONS = 3; // of a page
const PAUSE = 120; // milliseconds in which nothing is typed
const ALIKE = 0.6; // of a word that is typed, from its beginning

const HINT = "A network, a term, a number, an author or a name in the code: residual, 1×1, LeCun, BasicBlock.";
const NOTHING = "Fewer or shorter words may find more; the side bar and the front page list the chapters.";
const BROKEN = "The index cannot be loaded. Enter leads to the search page.";

// ---- finding ----------------------------------------------------------------------------------

let loading;

function engine() {
  loading ??= import("../pagefind/pagefind.js").then(async (pagefind) => {
    const metaWeights = { title: 20, authors: 10, paper: 5, terms: 5 };
    const ranking = { diacriticSimilarity: 0, metaWeights };
    await pagefind.options({ excerptLength: 24, ranking });
    await pagefind.preload(""); // waits until it can search
    return pagefind;
  });
  return loading;
}

// The pages with all words of a query, best first, and how many there are:
// {count, pages: [{url, title, excerpt, sections: [{url, title, excerpt}]}]}, texts as words() gives.
export async function find(query, most) {
  const pagefind = await engine();
  const typed = asIndexed(query);
  const { results } = await pagefind.search(typed);
  const found = await Promise.all(results.slice(0, most).map((result) => result.data()));
  if (!found.length || !meant(query, found[0])) return { count: 0, pages: [] };
  // The engine makes little of words that are on most pages, as in "layer scale" or "Tacotron 2".
  const explains = ({ meta }) => /\s/.test(typed) && has(` ${meta.title} ${meta.terms} `, ` ${typed} `);
  found.sort((a, b) => explains(b) - explains(a));
  return { count: results.length, pages: found.map(page) };
}

const has = (text, part) => text.toLowerCase().includes(part.toLowerCase());

// A query in the words of the index: 3 × 3 is one, 138,357,544 another, nn.Conv2d two.
function asIndexed(query) {
  const quote = /^\s*".+"\s*$/.test(query) ? '"' : "";
  const words = query
    .normalize("NFC")
    .replace(/(\d)\s*[×x]\s*(?=\d)/gi, "$1x")
    .replace(/×/g, "x")
    .replace(/(\d)[,'’\u2009\u202f](?=\d{3}(?!\d))/g, "$1")
    .replace(/\b\d{1,3}( \d{3}){2,}\b/g, (number) => number.replaceAll(" ", ""))
    .replace(AMERICAN, "$1is$2") // the engine's stem would find "normal" for "normalize"
    .replace(/\p{Script=Han}+/gu, " $& ")
    .replace(/\.(?!\d)|[^\p{L}\p{N}\p{M}\s._-]/gu, " ")
    .trim();
  return quote + words + quote;
}

// The engine takes for a word that it does not know the longest beginning that it knows: "z" for
// "zebra". That is not what was meant.
function meant(query, { raw_content, locations }) {
  const plain = (text) => text.normalize("NFKD").replace(/[^\p{L}\p{N}]/gu, "").toLowerCase();
  const all = raw_content.split(/\s+/);
  const words = locations.map((location) => plain(all[location]));
  return asIndexed(query).split(/\s+/).map(plain).every((typed) => {
    const beginning = typed.slice(0, Math.ceil(typed.length * ALIKE));
    return words.some((word) => word.includes(beginning));
  });
}

function page({ url, meta, sub_results }) {
  const strength = ({ weighted_locations }) =>
    weighted_locations.reduce((sum, { balanced_score }) => sum + balanced_score, 0);
  const best = sub_results.sort((a, b) => strength(b) - strength(a)).slice(0, SECTIONS).map(section);
  const top = best.find((section) => section.url === url);
  const sections = best.filter((section) => section !== top);
  return { ...(top ?? { url, title: words(meta.title), excerpt: [] }), sections };
}

// An excerpt from the beginning of a section begins with its title.
function section({ url, title, excerpt }) {
  const heading = words(title);
  const text = words(excerpt);
  const begins = heading.every((word, i) => text[i]?.text.startsWith(word.text));
  const marked = heading.map((word, i) => ({ ...word, marked: begins && text[i].marked }));
  return { url, title: marked, excerpt: begins ? text.slice(heading.length) : text };
}

// [{text, marked, glued}] of what Pagefind returns, as it stands on the page.
function words(text) {
  const found = [];
  for (const word of text.split(/\s+/)) {
    const marked = word.startsWith("<mark>");
    let shown = word.replace(/<\/?mark>/g, "").replaceAll("&lt;", "<").replaceAll("&gt;", ">");
    if (shown.startsWith(HIDDEN)) {
      if (found.length) found.at(-1).marked ||= marked;
      continue;
    }
    const glued = shown.startsWith(GLUE);
    if (glued) shown = shown.slice(GLUE.length);
    found.push({ text: shown.replaceAll(TIMES, "×"), marked, glued });
  }
  return found;
}

// ---- showing ----------------------------------------------------------------------------------

export function inDialog(dialog) {
  const field = dialog.querySelector("input[name=q]");
  // Escape would also empty the field, and leave what was found for what is no longer in it.
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    event.preventDefault();
    dialog.close();
  });
  // What stays from the last search is selected before the dialog opens again, so that whatever is
  // typed replaces it: the event of opening comes late, after the first letters of a fast reader.
  dialog.addEventListener("close", () => field.select());
  asTyped(dialog, field, IN_DIALOG).catch(() => complain(dialog));
}

function complain(place) {
  place.querySelector(".search-status").textContent = BROKEN;
}

// The search page: its address holds the query. Fails where the index cannot be loaded.
export function onPage(page) {
  const field = page.querySelector("input[name=q]");
  field.value = new URLSearchParams(location.search).get("q") ?? "";
  field.addEventListener("input", () => {
    history.replaceState(null, "", `?${new URLSearchParams({ q: field.value })}`);
  });
  return asTyped(page, field, ON_PAGE);
}

async function asTyped(place, field, most) {
  const status = place.querySelector(".search-status");
  const list = place.querySelector(".search-found");
  let turn = 0;

  async function show() {
    const query = field.value.trim();
    const mine = ++turn;
    if (query.length < 2 && !/\p{Script=Han}/u.test(query)) {
      status.textContent = HINT;
      list.replaceChildren();
      return;
    }
    const { count, pages } = await find(query, most);
    if (mine !== turn) return; // something else has been typed
    status.textContent = summary(query, count, pages.length);
    list.replaceChildren(...pages.map(entry));
    list.scrollTop = 0;
  }

  let waiting;
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => show().catch(() => complain(place)), PAUSE);
  });
  place.addEventListener("keydown", (event) => move(event, field, list));
  status.textContent = "The index is being loaded.";
  await engine();
  await show();
}

function summary(query, count, shown) {
  if (!count) return `Nothing is found for “${query}”. ${NOTHING}`;
  const all = count === 1 ? "1 page" : `${count} pages`;
  return shown < count ? `${all}, of which these ${shown} come first.` : `${all}.`;
}

function entry({ url, title, excerpt, sections }) {
  const found = element("li", "search-page", link(url, title, excerpt));
  found.append(...sections.map((section) => link(section.url, section.title, section.excerpt)));
  return found;
}

function link(url, title, excerpt) {
  const found = element("a", "", element("span", "search-title", ...text(title)));
  found.href = url;
  found.append(" ", ...text(excerpt));
  return found;
}

function text(words) {
  return words.flatMap(({ text, marked, glued }, i) => {
    const space = i && !glued ? " " : "";
    if (!marked) return [space + text];
    const [, before, word, after] = text.match(/^([^\p{L}\p{N}]*)(.*?)([^\p{L}\p{N}]*)$/u);
    return [space + before, element("mark", "", word), after];
  });
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Arrows go from the field through the results and back.
function move(event, field, list) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const stops = [field, ...list.querySelectorAll("a")];
  const here = stops.indexOf(document.activeElement);
  if (!step || here < 0 || event.isComposing) return; // a word of Chinese is being chosen
  event.preventDefault();
  stops[Math.max(0, Math.min(stops.length - 1, here + step))].focus();
}
