// The page: one state, from which the views are drawn.

import { ClipView } from "./clip.js";
import { count, el, hours, replaceChildren, several, words } from "./dom.js";
import { funnel } from "./funnel.js";
import { Grid } from "./grid.js";
import { Histogram } from "./histogram.js";
import { helpDialog, listen } from "./keys.js";
import { Picks } from "./picks.js";
import { Records, UNSURE } from "./records.js";
import { Selection } from "./rules.js";
import { sourceList, sourcePage } from "./sources.js";
import { State } from "./state.js";
import { ClipTiles, isPlaying, play, RejectedTiles, stop } from "./tiles.js";

const MOST_PLAYING = 24; // clips at a time, of those that are seen
const POLL_MS = 2000; // how often a served page asks for what is new

class Page {
  constructor(data) {
    this.records = new Records(data);
    this.selection = new Selection(this.records);
    this.state = new State(() => this.draw());
    this.picks = new Picks(data, () => this.picked(), (message) => this.say(message));
    this.histograms = [];
    this.decoding = new Set(); // digests of clips whose latents the server decodes at the moment
    this.clipGrid = new Grid("Clips", new ClipTiles(this), { opened: (clip) => this.openClip(clip) });
    this.rejectedGrid = new Grid("Rejected records", new RejectedTiles(this), { opened: (row) => this.openRejected(row) });
    this.clipView = new ClipView(this, {
      close: () => this.closeClip(),
      next: () => this.stepClip(1),
      previous: () => this.stepClip(-1),
      pick: (choice) => this.pick(choice),
      noted: (digest, note) => this.picks.annotate(digest, note),
      undo: () => this.undo(),
      turned: (frame) => this.turned(frame),
      openSpan: (span) => this.openSpan(span),
      openSource: (source) => this.openSource(source),
      decode: (clip) => this.decode(clip),
    });
    this.help = helpDialog();
    this.build();
    this.adopt();
    this.draw();
    if (data.served) this.poll();
  }

  // The frame of the page, once.
  build() {
    const { data } = this.records;
    document.title = `${data.name} \u00b7 longtake`;
    const tab = (view, label, key) => el("button", { type: "button", role: "tab", "data-view": view, title: `${label} (${key})`, onclick: () => this.go(view) }, label);
    this.tabs = el("nav", { class: "tabs", role: "tablist", "aria-label": "Views" }, tab("clips", "Clips", "G"), tab("funnel", "Funnel", "F"), tab("sources", "Sources", "S"));
    this.search = el("input", { type: "search", class: "search", placeholder: "Search keys, captions, sources", "aria-label": "Search", oninput: () => this.state.set({ q: this.search.value }) });
    this.summary = el("button", { type: "button", class: "link summary", title: "The funnel", onclick: () => this.go("funnel") });
    this.panelButton = el("button", { type: "button", class: "ghost panel-button", "aria-expanded": "false", onclick: () => this.togglePanel() }, "Thresholds");
    this.head = el(
      "header",
      { class: "head" },
      el("div", { class: "brand" }, el("h1", {}, words(data.name)), this.summary),
      this.tabs,
      this.search,
      el("div", { class: "head-buttons" }, this.panelButton, el("button", { type: "button", class: "icon ghost", "aria-label": "Keys and help", title: "Keys (?)", onclick: () => this.help.showModal() }, "?")),
    );
    this.panel = el("aside", { class: "panel", "aria-label": "Thresholds" });
    this.bar = el("div", { class: "bar" });
    this.view = el("main", { class: "view", id: "view", tabindex: "-1" });
    this.toast = el("div", { class: "toast", role: "status", "aria-live": "polite", hidden: true });
    const skip = el("button", { type: "button", class: "skip", onclick: () => this.enterView() }, "Skip to the view");
    document.body.replaceChildren(skip, this.head, this.panel, this.view, this.clipView.dialog, this.help, this.toast);
    this.keys();
  }

  // Take in data: the first, and what a live page is sent.
  adopt() {
    const { records, selection, state } = this;
    for (const source of records.sources) source.captions ??= [];
    this.buildPanel();
    const nouns = { expand: "source", cut: "scene", extract: "clip", encode: "sample", shard: "shard" };
    const steps = records.data.stages.filter((stage) => stage.stage in nouns);
    replaceChildren(this.summary, steps.map((stage) => several(stage.out, nouns[stage.stage])).join(" \u2192 "));
    this.applyThresholds();
    selection.update(this.picks.latest);
    this.search.value = state.values.q;
  }

  buildPanel() {
    const { records, selection } = this;
    this.tally = el("div", { class: "tally-box", role: "status", "aria-live": "polite" });
    this.histograms = records.count
      ? records.measures.map((measure) => new Histogram(measure, (name, threshold) => this.threshold(name, threshold), (name) => this.sortBy(name)))
      : [];
    const rules = selection.rules.filter((rule) => !rule.threshold);
    const toggles = rules.map((rule) =>
      el(
        "label",
        { class: "rule" },
        el("input", { type: "checkbox", "data-rule": rule.name, onchange: (event) => this.toggleRule(rule, event.target.checked) }),
        el("span", {}, el("b", {}, words(rule.name)), " ", el("code", {}, words(rule.text))),
      ),
    );
    this.recipe = el("textarea", { class: "recipe", readonly: true, rows: 5, "aria-label": "Lines for the recipe", spellcheck: "false" });
    this.recipeHint = el("p", { class: "hint" });
    this.copyButton = el("button", { type: "button", class: "primary", onclick: () => this.copy() }, "Copy as recipe");
    const picksBox = el(
      "section",
      { class: "picks" },
      el("h2", {}, "Picks"),
      (this.picksText = el("p", { class: "hint" })),
      (this.picksButtons = el("div", { class: "row" }, el("button", { type: "button", class: "ghost", onclick: () => this.undo() }, "Undo"), el("button", { type: "button", class: "ghost", onclick: () => this.download() }, "Download picks"))),
    );
    replaceChildren(
      this.panel,
      this.tally,
      el("div", { class: "row" }, this.copyButton, (this.resetButton = el("button", { type: "button", class: "ghost", title: "The recipe's own rules and thresholds; picks stay", onclick: () => this.resetRules() }, "Reset"))),
      el("details", { class: "recipe-box" }, el("summary", {}, "lines for ", words(records.data.recipe_file)), this.recipe, this.recipeHint),
      picksBox,
      toggles.length ? el("section", { class: "rules" }, el("h2", {}, "Rules of the recipe"), toggles) : null,
      this.histograms.map((histogram) => histogram.node),
    );
  }

  picksSummary() {
    const { picks, records } = this;
    const choices = [...picks.latest.values()];
    if (!choices.length) return "None yet. K keeps and X rejects the framed clip; its own view has buttons.";
    const kept = choices.filter((choice) => choice === "keep").length;
    const place = picks.isElsewhere ? "in this browser only: download them to build with them" : `in ${records.data.picks_file}`;
    return `${kept} kept, ${choices.length - kept} rejected, ${place}`;
  }

  // What one does with the lines.
  recipeSteps() {
    const { recipe_file: recipe, picks_file: file } = this.records.data;
    const lines = this.recipe.value;
    const places = [];
    if (lines.includes("[keep]")) places.push("[keep] takes the place of the whole table of that name");
    if (lines.includes("[filter]")) places.push("min_frames takes the place of that line in [filter]");
    if (!places.length) return "";
    const picks = this.picks.isElsewhere ? ` The downloaded picks belong beside it, as ${file}.` : "";
    return `In ${recipe}, ${places.join(", and ")}; a table that is not there yet goes to the end.${picks} Then build again.`;
  }

  // Thresholds from the address, or the recipe's own.
  applyThresholds() {
    const { selection, state, records } = this;
    selection.resetThresholds();
    if (state.isTouched) {
      for (const name of [...selection.thresholds.keys()]) selection.setThreshold(name, {});
      for (const [name, threshold] of state.thresholds) if (records.byMeasure.has(name)) selection.setThreshold(name, threshold);
      for (const rule of selection.rules) rule.isOn = !state.off.has(rule.name);
    }
    for (const histogram of this.histograms) histogram.set(selection.thresholds.get(histogram.measure.name) ?? {});
    for (const box of this.panel.querySelectorAll("[data-rule]")) box.checked = !state.isTouched || !state.off.has(box.dataset.rule);
  }

  threshold(name, threshold) {
    this.selection.setThreshold(name, threshold);
    this.touched();
  }

  toggleRule(rule, isOn) {
    rule.isOn = isOn;
    this.touched();
  }

  touched() {
    const { selection, state } = this;
    state.isTouched = true;
    state.thresholds = new Map(selection.thresholds);
    state.off = new Set(selection.rules.filter((rule) => !rule.isOn).map((rule) => rule.name));
    this.later ??= requestAnimationFrame(() => {
      this.later = undefined;
      state.write();
      selection.update(this.picks.latest);
      this.drawSelection();
    });
  }

  resetRules() {
    this.state.isTouched = false;
    this.state.thresholds.clear();
    this.state.off.clear();
    this.state.write();
    this.applyThresholds();
    this.selection.update(this.picks.latest);
    this.drawSelection();
  }

  // What depends on which clips stay.
  drawSelection() {
    const { selection, records, picks } = this;
    const { totals } = selection;
    const fps = records.data.fps;
    const share = totals.allFrames ? Math.round((100 * totals.frames) / totals.allFrames) : 100;
    replaceChildren(
      this.tally,
      el("div", { class: "tally-clips" }, el("b", { "data-count": totals.clips }, count(totals.clips)), ` of ${several(totals.all, "clip")} stay`),
      el("div", { class: "tally-hours" }, `${hours(totals.frames / fps)} of ${hours(totals.allFrames / fps)} \u00b7 ${share} %`),
      el("div", { class: "share" }, el("i", { style: { width: `${share}%` } })),
    );
    for (const histogram of this.histograms) histogram.draw(selection.stays);
    replaceChildren(this.picksText, words(this.picksSummary()));
    this.picksButtons.hidden = !picks.lines.length;
    this.recipe.value = selection.recipe(picks.latest.size, records.data.picks_file);
    replaceChildren(this.recipeHint, words(this.recipeSteps()));
    this.resetButton.hidden = !this.state.isTouched;
    if (this.state.values.view === "clips") {
      this.listClips();
      this.clipGrid.refresh();
    }
    if (this.clipView.isOpen) this.clipView.refresh();
  }

  // Draw everything from the state.
  draw() {
    const { state, records } = this;
    const { view, clip } = state.values;
    this.applyThresholds();
    this.selection.update(this.picks.latest);
    if (this.search.value !== state.values.q) this.search.value = state.values.q;
    for (const tab of this.tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.view === view));
    document.body.dataset.view = view;
    if (view === "funnel") this.drawFunnel();
    else if (view === "sources") this.drawSources();
    else this.drawClips();
    this.drawSelection();
    const number = records.numberOf.get(clip);
    if (number !== undefined) this.clipView.open(number, Number(state.values.frame) || 0);
    else if (this.clipView.isOpen) this.clipView.close();
  }

  drawClips() {
    const { state, records } = this;
    const distinct = (values) => [...new Set(values)].filter(Boolean).sort();
    const licenses = distinct(records.sources.map((source) => source.license));
    const chosen = (name, value) => state.set({ [name]: value, ...(value.startsWith(UNSURE) && { order: "up" }) });
    const select = (name, label, options) =>
      options.length > 1
        ? el("label", { class: "select" }, el("span", { class: "hidden" }, label), el("select", { "aria-label": label, onchange: (event) => chosen(name, event.target.value) }, options.map(([value, text]) => el("option", { value, selected: state.values[name] === value }, text))))
        : null;
    const showButton = (show, label) => el("button", { type: "button", "aria-pressed": String(state.values.show === show), "data-show": show, onclick: () => state.set({ show }) }, label);
    const measures = records.measures.map((measure) => [measure.name, `By ${measure.name}`]);
    const unsure = records.measures.filter((measure) => measure.unit === "probability").map(({ name }) => [`${UNSURE}${name}`, `Least certain ${name}`]);
    const splits = records.split.includes(2) ? [["", "Any split"], ["train", "train"], ["validation", "validation"]] : [];
    const sources = records.sources.length <= 500 ? [["", "Any source"], ...records.sources.map((source) => [source.key, source.key])] : state.values.source ? [["", "Any source"], [state.values.source, state.values.source]] : [];
    this.found = el("span", { class: "found" });
    replaceChildren(
      this.bar,
      el("div", { class: "segments", role: "group", "aria-label": "Which clips" }, showButton("all", "All"), showButton("stay", "Staying"), showButton("go", "Going"), showButton("picked", "Picked")),
      select("sort", "Sort by", [["key", "By name"], ["source", "By source"], ["seconds", "By length"], ...measures, ...unsure]),
      el("button", { type: "button", class: "ghost", "aria-label": state.values.order === "up" ? "Ascending" : "Descending", title: "Turn the order", onclick: () => state.set({ order: state.values.order === "up" ? "down" : "up" }) }, state.values.order === "up" ? "\u2191" : "\u2193"),
      select("source", "Source", sources),
      select("license", "Licence", [["", "Any licence"], ...licenses.map((name) => [name, name])]),
      select("split", "Split", splits),
      el("button", { type: "button", class: "ghost play-all", title: "Play all that are seen (A)", onclick: () => this.playAll() }, "\u25b6 all"),
      this.found,
    );
    this.setView("clips", this.bar, this.clipGrid.node);
    this.listClips();
    this.clipGrid.layout();
  }

  // The grid that one sees, if there is one.
  get grid() {
    const { view } = this.state.values;
    if (view === "sources") return undefined;
    return view === "funnel" ? this.rejectedGrid : this.clipGrid;
  }

  // The keyboard's way past head and panel: to the framed tile, or to the view where there is none.
  enterView() {
    this.view.focus();
    if (this.grid?.node.isConnected) this.grid.focus(this.grid.at);
  }

  go(view) {
    this.state.set({ view, clip: "", page: "" }, true);
  }

  // Show a view's nodes; those that are there already stay, with their scroll position.
  setView(name, ...nodes) {
    const current = [...this.view.children];
    if (current.length !== nodes.length || current.some((node, at) => node !== nodes[at])) this.view.replaceChildren(...nodes);
  }

  listClips() {
    const { records, state, selection, picks } = this;
    const { q, source, license, split, show, sort, order } = state.values;
    const needle = q.trim().toLowerCase();
    const splitNumber = { train: 1, validation: 2 }[split] ?? 0;
    const wantedSource = source ? records.sourceOf.get(source) : undefined;
    const items = [];
    for (let clip = 0; clip < records.count; clip++) {
      if (!selection.basis[clip]) continue;
      if (show === "stay" && !selection.stays[clip]) continue;
      if (show === "go" && selection.stays[clip]) continue;
      if (show === "picked" && !picks.of(records.digestOf(clip))) continue;
      if (source && records.source[clip] !== wantedSource) continue;
      if (license && records.sources[records.source[clip]]?.license !== license) continue;
      if (splitNumber && records.split[clip] !== splitNumber) continue;
      if (needle && !records.searchable(clip).includes(needle)) continue;
      items.push(clip);
    }
    const [measure, isUnsure] = records.sorting(sort);
    if (measure) {
      const { values } = measure;
      const far = order === "up" ? Infinity : -Infinity; // what is not measured comes last
      // what was picked is no question any more
      const picked = new Set(isUnsure ? [...picks.latest.keys()].map((digest) => records.byDigest.get(digest)) : []);
      const value = (clip) => (Number.isNaN(values[clip]) || picked.has(clip) ? far : isUnsure ? Math.abs(values[clip] - 0.5) : values[clip]);
      items.sort((a, b) => (order === "up" ? value(a) - value(b) : value(b) - value(a)) || a - b);
    } else if (sort === "seconds" || sort === "source") {
      const values = sort === "seconds" ? records.frames : records.source;
      const sign = order === "up" ? 1 : -1;
      items.sort((a, b) => sign * (values[a] - values[b]) || a - b);
    } else if (order === "down") items.reverse();
    if (!sameItems(items, this.clipGrid.items)) this.clipGrid.show(items);
    if (this.found) replaceChildren(this.found, several(items.length, "clip"));
    this.emptyHint(items.length);
  }

  // What to do where no clip is listed.
  emptyHint(length) {
    this.hint ??= el("div", { class: "hint empty-hint" });
    if (length) return this.hint.remove();
    const { records, state } = this;
    const button = (values, ...text) => el("button", { type: "button", class: "ghost", onclick: () => state.set(values, true) }, ...text);
    const { q } = state.values;
    const rejected = q.trim() ? this.rejectedRows("", q).length : 0;
    replaceChildren(
      this.hint,
      el("p", {}, records.count ? "No clip is like that." : "There are no clips yet. The funnel says how far the build has come."),
      rejected ? button({ view: "funnel", class: "" }, `See ${several(rejected, "rejected record")} with \u201c`, words(q.trim()), "\u201d") : null,
      records.count ? button({ q: "", source: "", license: "", split: "", show: "all" }, "Show all clips") : null,
    );
    this.clipGrid.node.append(this.hint);
  }

  // Rejected records of a class, "" for any, in which a text occurs.
  rejectedRows(chosen, text) {
    const { records } = this;
    const needle = text.trim().toLowerCase();
    const rows = [];
    for (let row = 0; row < records.rejected.keys.length; row++) {
      const [stage, reason] = records.data.classes[records.rejected.class[row]];
      if (chosen && `${stage}:${reason}` !== chosen) continue;
      if (needle && !`${records.rejected.keys[row]} ${records.sourceText(records.rejected.source[row])} ${records.detailOf(row)}`.toLowerCase().includes(needle)) continue;
      rows.push(row);
    }
    return rows;
  }

  drawFunnel() {
    const { records, state } = this;
    const chosen = state.values.class;
    const { q } = state.values;
    const rows = this.rejectedRows(chosen, q);
    const total = records.rejected.keys.length;
    const title = chosen ? `${several(rows.length, "record")} rejected by ${chosen.replace(":", ": ")}` : total ? `${several(rows.length, "rejected record")}` : "Nothing was rejected";
    const search = q.trim() ? ` with \u201c${q.trim()}\u201d` : "";
    const heading = el("div", { class: "bar" }, el("h2", { class: "list-title" }, words(title + search)), chosen ? el("button", { type: "button", class: "ghost", onclick: () => state.set({ class: "" }) }, "all classes") : el("span", { class: "hint" }, total ? "Choose a class above; open one to see why, when and from where." : ""));
    const unknown = records.data.unknown ? el("p", { class: "hint" }, "Later stages are not known: ", words(records.data.unknown)) : null;
    const top = el("div", { class: "funnel-top" }, funnel(records, chosen, (name) => state.set({ class: name })), unknown);
    this.setView("funnel", top, heading, this.rejectedGrid.node);
    this.rejectedGrid.show(rows);
  }

  drawSources() {
    const { records, state } = this;
    const actions = {
      openSpan: (span) => this.openSpan(span),
      openSource: (source) => this.openSource(source),
      back: () => state.set({ page: "" }, true),
      onlyHere: (source) => state.set({ view: "clips", source: records.sources[source].key, q: "" }, true),
    };
    const one = records.sourceOf.get(state.values.page);
    if (one !== undefined) {
      this.setView("sources", el("div", { class: "scroller" }, sourcePage(records, one, actions)));
      return;
    }
    const needle = state.values.q.trim().toLowerCase();
    const numbers = records.sources.map((_, source) => source).filter((source) => !needle || records.sourceText(source).toLowerCase().includes(needle));
    this.setView("sources", el("div", { class: "scroller" }, el("h2", { class: "list-title" }, several(numbers.length, "source")), legend(), sourceList(records, numbers, actions)));
  }

  // A rejected record: its clip if there is one, else a card with its story.
  openRejected(row) {
    const { records } = this;
    const clip = records.rejected.clip[row];
    if (clip >= 0) return this.openClip(clip);
    const source = records.rejected.source[row];
    const { first, last } = records.timesOf(row);
    const start = records.rejected.start[row];
    const url = records.rejectedPictureUrl(row);
    const strip = url ? el("div", { class: "strip-wide" }, el("img", { src: url, alt: "Six pictures of the scene, as the reel has it" })) : el("p", { class: "hint" }, Number.isNaN(start) ? "No picture: it was rejected before anything was decoded." : "No picture: its video's reel is not in the store.");
    const rows = [
      ["why", el("span", {}, el("b", {}, words(records.className(records.rejected.class[row]))), " \u00b7 ", words(records.detailOf(row)))],
      ["stage", words(records.data.classes[records.rejected.class[row]][0])],
      ["when", last ? (first === last ? last : `${last} (first ${first}, tried ${records.rejected.tries[row]} times)`) : "with every build"],
      source >= 0 ? ["source", el("button", { type: "button", class: "link", onclick: () => { card.close(); this.openSource(source); } }, words(records.sources[source].key))] : null,
      source >= 0 ? ["address", words(records.sources[source].uri)] : null,
      Number.isNaN(start) ? null : ["time", `${start.toFixed(2)} s to ${records.rejected.end[row].toFixed(2)} s`],
    ].filter(Boolean);
    const card = el(
      "dialog",
      { class: "rejected-card", "aria-label": "Rejected record" },
      el("header", { class: "clip-head" }, el("h2", {}, words(records.rejected.keys[row])), el("button", { type: "button", class: "ghost close", "aria-label": "Close", onclick: () => card.close() }, "\u2715")),
      strip,
      el("dl", { class: "facts" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    );
    card.addEventListener("close", () => card.remove());
    card.addEventListener("click", (event) => event.target === card && card.close());
    document.body.append(card);
    card.showModal();
    return card;
  }

  openClip(clip) {
    this.state.set({ clip: this.records.keys[clip], frame: "" }, true);
  }

  openSpan(span) {
    if (span.clip >= 0) this.openClip(span.clip);
    else if (span.row >= 0) this.openRejected(span.row);
  }

  openSource(source) {
    this.state.set({ view: "sources", page: this.records.sources[source].key, clip: "", frame: "" }, true);
  }

  closeClip() {
    this.clipView.clip = -1; // so that closing the dialog does not come here again
    this.clipView.close();
    this.state.set({ clip: "", frame: "" });
    this.focusClip(this.lastClip);
  }

  focusClip(clip) {
    const index = this.clipGrid.items.indexOf(clip);
    if (this.state.values.view === "clips" && index >= 0) this.clipGrid.focus(index);
  }

  turned(frame) {
    this.lastClip = this.clipView.clip;
    this.state.values.frame = frame ? String(frame) : "";
    clearTimeout(this.writing); // not at every frame: browsers limit how often
    this.writing = setTimeout(() => this.state.write(), 300);
  }

  stepClip(by) {
    const { items } = this.clipGrid;
    if (!items.length) this.listClips();
    const at = items.indexOf(this.clipView.isOpen ? this.clipView.clip : this.clipGrid.current);
    const next = items[at + by];
    if (next === undefined) return true;
    if (this.clipView.isOpen) this.state.set({ clip: this.records.keys[next], frame: "" });
    else this.clipGrid.focus(at + by);
    return true;
  }

  get chosen() {
    if (this.clipView.isOpen) return this.clipView.clip;
    return this.state.values.view === "clips" ? this.clipGrid.current : undefined;
  }

  pick(choice) {
    const clip = this.chosen;
    if (clip === undefined) return true;
    const note = this.clipView.isOpen ? this.clipView.noteText : "";
    const at = this.clipGrid.items.indexOf(clip);
    const pick = this.picks.press(this.records.digestOf(clip), choice, note);
    const key = this.records.keys[clip];
    this.say(pick === "keep" ? `${key} is kept` : pick === "reject" ? `${key} is rejected` : `${key} has no pick any more`);
    if (!this.clipView.isOpen && this.clipGrid.items[at] !== clip) this.clipGrid.focus(at); // it left a filtered list
    return true;
  }

  undo() {
    const undone = this.picks.undo();
    if (!undone) this.say("There is nothing to undo");
    else this.say(`${this.records.keys[this.records.byDigest.get(undone.clip)] ?? "the clip"}: ${undone.pick ?? "no pick"} again`);
    return true;
  }

  picked() {
    this.selection.update(this.picks.latest);
    this.drawSelection();
  }

  sortBy(name) {
    const { sort, order } = this.state.values;
    this.state.set({ view: "clips", sort: name, order: sort === name && order === "down" ? "up" : "down" });
  }

  playAll() {
    const frames = [...this.clipGrid.shown.values()].map((tile) => [tile, tile.querySelector(".picture")]);
    const area = this.clipGrid.node.getBoundingClientRect();
    const seen = frames.filter(([tile]) => {
      const { top, bottom } = tile.getBoundingClientRect();
      return bottom > area.top && top < area.bottom;
    });
    const pinned = seen.filter(([, frame]) => frame.dataset.pinned);
    if (pinned.length) for (const [, frame] of frames) stop(frame);
    else
      for (const [tile, frame] of seen.slice(0, MOST_PLAYING)) {
        play(frame, tile.url);
        frame.dataset.pinned = "yes";
      }
    return true;
  }

  togglePlay() {
    if (this.clipView.isOpen) {
      this.clipView.toggle();
      return true;
    }
    if (this.state.values.view !== "clips") return undefined;
    const tile = this.clipGrid.shown.get(this.clipGrid.at);
    if (!tile) return undefined;
    const frame = tile.querySelector(".picture");
    if (isPlaying(frame)) stop(frame);
    else {
      play(frame, tile.url);
      frame.dataset.pinned = "yes";
    }
    return true;
  }

  togglePanel() {
    const isOpen = document.body.classList.toggle("panel-open");
    this.panelButton.setAttribute("aria-expanded", String(isOpen));
    this.panelButton.textContent = isOpen ? "Done" : "Thresholds";
  }

  keys() {
    const inGrid = (act) => () => (document.querySelector("dialog[open]") && !this.clipView.isOpen ? undefined : act());
    const step = (by) => (event) => (this.clipView.isOpen ? (this.clipView.step(by * (event.shiftKey ? 16 : 1)), true) : undefined);
    const go = (view) => () => (this.go(view), true);
    const move = (event) => (!document.querySelector("dialog[open]") && this.grid?.key(event)) || undefined;
    listen({
      K: inGrid(() => this.pick("keep")),
      X: inGrid(() => this.pick("reject")),
      U: inGrid(() => this.undo()),
      N: inGrid(() => this.stepClip(1)),
      J: inGrid(() => this.stepClip(1)),
      P: inGrid(() => this.stepClip(-1)),
      " ": inGrid(() => this.togglePlay()),
      A: inGrid(() => this.playAll()),
      ArrowRight: (event) => step(1)(event) ?? move(event),
      ArrowLeft: (event) => step(-1)(event) ?? move(event),
      ...Object.fromEntries(["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", "Enter"].map((key) => [key, move])),
      G: go("clips"),
      F: go("funnel"),
      S: go("sources"),
      "/": () => (this.search.focus(), true),
      "?": () => (this.help.open || this.help.showModal(), true),
      Escape: () => (document.activeElement === this.search ? (this.search.blur(), true) : undefined),
    });
  }

  async copy() {
    this.panel.querySelector(".recipe-box").open = true; // what one does with them stands there
    try {
      await navigator.clipboard.writeText(this.recipe.value);
      this.say("The lines are copied");
    } catch {
      this.recipe.select();
      document.execCommand("copy");
      this.say("The lines are selected");
    }
  }

  download() {
    const url = URL.createObjectURL(new Blob([this.picks.text()], { type: "application/jsonl" }));
    const { picks_file: file } = this.records.data;
    const link = el("a", { href: url, download: file.split("/").at(-1) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    this.say(`The picks belong beside the recipe, as ${file}`);
  }

  say(message) {
    this.toast.hidden = false;
    replaceChildren(this.toast, words(message));
    clearTimeout(this.toastEnd);
    this.toastEnd = setTimeout(() => (this.toast.hidden = true), 4000);
  }

  // A served page: ask now and then for what a build has added.
  async poll() {
    for (;;) {
      await new Promise((resume) => setTimeout(resume, POLL_MS));
      if (document.hidden) continue;
      try {
        const answer = await fetch(`data?after=${encodeURIComponent(this.records.data.served.version)}`);
        if (answer.status === 200) this.renew(await answer.json());
        document.body.classList.remove("is-lost");
      } catch {
        document.body.classList.add("is-lost");
      }
    }
  }

  renew(data) {
    const before = this.records.count;
    const clip = this.clipView.isOpen ? this.records.keys[this.clipView.clip] : "";
    this.records = new Records(data);
    this.selection = new Selection(this.records);
    this.picks.merge(data.picks);
    this.clipGrid.items = [];
    if (clip) this.clipView.clip = this.records.numberOf.get(clip) ?? -1;
    this.adopt();
    this.draw();
    const more = this.records.count - before;
    if (more > 0) this.say(`${several(more, "new clip")}`);
  }

  async decode(clip) {
    const digest = this.records.digestOf(clip);
    this.decoding.add(digest);
    this.clipView.renew();
    try {
      const answer = await fetch(`decoded/${digest}.mp4`, { method: "POST", headers: { "X-Longtake-Token": this.records.data.served.token } });
      if (answer.ok) this.records.isDecoded.add(this.records.byDigest.get(digest)); // a build may have moved it
      else this.say(await answer.text());
    } catch (error) {
      this.say(`Its latents were not decoded: ${error.message}`);
    }
    this.decoding.delete(digest);
    if (this.clipView.isOpen && this.records.digestOf(this.clipView.clip) === digest) this.clipView.renew();
  }
}

function sameItems(one, other) {
  return one.length === other.length && one.every((item, at) => item === other[at]);
}

function legend() {
  const sample = (kind, text) => el("span", { class: "legend-item" }, el("i", { class: `swatch ${kind}` }), text);
  return el("p", { class: "legend" }, sample("kept", "in the dataset"), sample("dropped", "rejected"), sample("pending", "not done yet"), sample("cut", "cut"));
}

new Page(JSON.parse(document.getElementById("data").textContent));
