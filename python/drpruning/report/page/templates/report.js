/* Draws the figures of the report with uPlot, from the data in the page or from a live server.
   Names from a run folder only ever become text: textContent and canvas text, never markup. */
(function () {
  "use strict";
  const root = document.documentElement;
  const $ = (selector, inside) => (inside || document).querySelector(selector);
  const $$ = (selector, inside) => [...(inside || document).querySelectorAll(selector)];
  const COLORS = 8;
  const DASHES = [[], [7, 3], [2, 3]];
  const OTHER_DASHES = [[6, 3], [2, 3], [9, 3, 2, 3]];
  const NARROWEST = 0.25; // of the axis: pruning is one percent of a real run, and where most happens
  const PRUNED = ["prune", "continue"];
  const UNITS = { tokens: "tokens", steps: "steps", time: "time" };

  let data = null;
  let charts = [];
  let pressed = null; // the chart in which the mouse went down
  const state = { x: "tokens", stage: "all", smoothing: 0, run: 0, hidden: new Set(), zoom: {} };

  /* ---------- numbers and names ---------- */
  const short = (value) => {
    const size = Math.abs(value);
    for (const [least, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (size >= least) return +(value / least).toPrecision(3) + unit;
    return String(+value.toPrecision(3));
  };
  const span = (seconds) => {
    if (seconds < 90) return +seconds.toPrecision(2) + " s";
    if (seconds < 5400) return +(seconds / 60).toPrecision(2) + " min";
    return seconds < 172800 ? +(seconds / 3600).toPrecision(2) + " h" : +(seconds / 86400).toPrecision(2) + " d";
  };
  const place = (value) => (state.x === "time" ? span(value) : short(value));
  const loss = (value) => value.toFixed(3);
  const share = (value) => (100 * value).toFixed(1) + "%";
  const plain = (value) => (Math.abs(value) >= 1e4 ? short(value) : String(+value.toPrecision(4)));
  const axisNumber = (value) => (Math.abs(value) >= 1e4 ? short(value) : String(+value.toPrecision(6)));

  /* ---------- colours follow the theme ---------- */
  let computed = null;
  const css = (name) => computed.getPropertyValue("--" + name).trim();
  const faded = (name, alpha) => css(name) + Math.round(255 * alpha).toString(16).padStart(2, "0");
  const seriesColor = (index) => "s" + (index % COLORS);
  const seriesDash = (index) => DASHES[Math.floor(index / COLORS) % DASHES.length];
  const rem = () => parseFloat(computed.fontSize);

  /* ---------- the axis: stages laid end to end ---------- */
  const lengthOf = (stage) => ({ tokens: stage.tokens, steps: stage.steps, time: stage.seconds }[state.x]);
  function layout(names) {
    const shownStages = state.stage === "all" || !names.includes(state.stage) ? names : [state.stage];
    const spans = [];
    for (const name of shownStages) {
      const lengths = data.runs.flatMap((run) => run.stages.filter((s) => s.name === name).map(lengthOf));
      const length = Math.max(0, ...lengths);
      const evaluated = data.runs.some((run) => run.stages.some((s) => s.name === name && s.evaluations));
      if (length > 0 || evaluated) spans.push({ name, length: length || 1 }); // before the first step: one evaluation
    }
    const total = spans.reduce((sum, each) => sum + each.length, 0);
    for (const each of spans) each.width = Math.max(each.length / total, NARROWEST);
    const widths = spans.reduce((sum, each) => sum + each.width, 0);
    let left = 0;
    for (const each of spans) {
      each.left = left;
      left = each.right = left + each.width / widths;
    }
    return spans;
  }
  function places(stage, table, where) {
    const values = table[{ tokens: "tokens", steps: "step", time: "time" }[state.x]] || [];
    const zero = state.x === "time" ? stage.began : 0;
    return values.map((v) => (v === null ? null : where.left + ((where.right - where.left) * (v - zero)) / where.length));
  }
  function niceStep(range, most) {
    const units = state.x === "time" ? [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400] : [];
    for (const unit of units) if (range / unit <= most) return unit;
    const raw = range / Math.max(1, most), size = Math.pow(10, Math.floor(Math.log10(raw)));
    return [1, 2, 2.5, 5, 10].find((each) => each * size >= raw) * size;
  }
  function ticks(spans, low, high, most) {
    const found = [];
    for (const each of spans) {
      const from = Math.max(low, each.left), to = Math.min(high, each.right);
      if (to <= from) continue;
      const inside = (at) => ((at - each.left) / (each.right - each.left)) * each.length;
      const step = niceStep(inside(to) - inside(from), Math.max(1, Math.round((most * (to - from)) / (high - low))));
      for (let value = Math.ceil(inside(from) / step - 1e-9) * step; value <= inside(to) * (1 + 1e-9); value += step) {
        const at = each.left + ((each.right - each.left) * value) / each.length;
        if (found.length && at - found[found.length - 1].at < (0.45 * (high - low)) / most) {
          if (value !== 0) continue; // of two that would touch, the start of a stage is named
          found.pop();
        }
        found.push({ at, label: place(value) });
      }
    }
    return found;
  }

  /* ---------- lines: points of all stages in one list, with a gap between stages ---------- */
  function line(run, spans, kind, pick) {
    const x = [], y = [];
    for (const each of spans) {
      const stage = run.stages.find((s) => s.name === each.name);
      const table = stage && stage[kind];
      const values = table && pick(table);
      if (!values) continue;
      if (x.length) { x.push(each.left); y.push(null); }
      const at = places(stage, table, each);
      for (let i = 0; i < values.length; i++)
        if (at[i] !== null && at[i] !== undefined && values[i] !== null && !(x.length && at[i] <= x[x.length - 1])) {
          x.push(at[i]); y.push(values[i]);
        }
    }
    return { x, y };
  }
  /* Weights hold from one evaluation to the next, and the last ones to the end of the stage. */
  function held(points, spans) {
    const x = [], y = [];
    for (let i = 0; i < points.x.length; i++) {
      x.push(points.x[i]); y.push(points.y[i]);
      const where = spans.find((each) => points.x[i] >= each.left && points.x[i] < each.right);
      if (where && points.y[i] !== null && (i + 1 === points.x.length || points.y[i + 1] === null)) {
        const end = where.right - 1e-6;
        if (end > points.x[i]) { x.push(end); y.push(points.y[i]); }
      }
    }
    return { x, y };
  }
  function smoothed(points) {
    if (!state.smoothing) return points;
    let sum = 0, weight = 0;
    const y = points.y.map((value) => {
      if (value === null) { sum = weight = 0; return null; }
      sum = state.smoothing * sum + (1 - state.smoothing) * value;
      weight = state.smoothing * weight + 1 - state.smoothing;
      return sum / weight;
    });
    return { x: points.x, y };
  }
  const any = (points) => points.y.some((value) => value !== null);

  /* ---------- what each figure shows ---------- */
  const main = () => data.runs[state.run];
  const others = () => data.runs.map((run, index) => ({ run, index })).filter((each) => each.index !== state.run);
  const visible = (domain) => !state.hidden.has(data.domains[domain]);

  function lossFigures() {
    const spans = layout(PRUNED);
    return data.domains.map((name, d) => {
      const series = [];
      const add = (label, points, style) => any(points) && series.push({ label, points, ...style });
      others().forEach(({ run }, rank) =>
        add(run.label, smoothed(line(run, spans, "evaluations", (t) => t.losses[d])),
          { color: "muted", dash: OTHER_DASHES[rank % 3], width: 1.5 }));
      const low = line(main(), spans, "evaluations", (t) => t.predicted_low[d]);
      const high = line(main(), spans, "evaluations", (t) => t.predicted_high[d]);
      if (any(low) && any(high)) {
        add("band, high end", high, { color: seriesColor(d), width: 0, bandTo: 1 });
        add("band, low end", low, { color: seriesColor(d), width: 0 });
      }
      add("predicted end", line(main(), spans, "evaluations", (t) => t.predicted_loss[d]),
        { color: seriesColor(d), dash: [7, 3], width: 1.2 });
      add("reference loss", line(main(), spans, "evaluations", (t) => t.reference_loss[d]),
        { color: "ink", dash: [2, 2], width: 1.5, stepped: true });
      const own = smoothed(line(main(), spans, "evaluations", (t) => t.losses[d]));
      if (any(own)) add(data.runs.length > 1 ? main().label : "held-out loss", own,
        { color: seriesColor(d), dash: seriesDash(d), width: 2.2, key: true });
      const base = main().base[d];
      return { id: "loss-" + d, title: name, domain: d, spans, series, format: loss, unit: "nats per token",
        small: true, lines: base === null ? [] : [{ at: base, label: "base" }], hidden: !visible(d) };
    }).filter((figure) => figure.series.some((each) => each.key));
  }

  function stacked(id, title, table) {
    const spans = layout(PRUNED), series = [];
    let below = null;
    data.domains.forEach((name, d) => {
      if (!visible(d)) return;
      const points = held(line(main(), spans, "evaluations", (t) => t[table][d]), spans);
      if (!any(points)) return;
      const own = new Map(points.x.map((x, i) => [x, points.y[i]]));
      const y = points.x.map((x, i) =>
        points.y[i] === null ? null : Math.min(1, Math.max(0, points.y[i])) + ((below && below.get(x)) || 0));
      below = new Map(points.x.map((x, i) => [x, y[i]]));
      series.push({ label: name, points: { x: points.x, y }, shown: own, color: seriesColor(d), width: 0.5,
        stepped: true, stack: [0.85, 0.5, 0.25][Math.floor(d / COLORS) % 3] });
    });
    return { id, title, spans, series, format: share, unit: "share of the tokens", range: [0, 1], stack: true,
      axisFormat: (value) => Math.round(100 * value) + "%" };
  }

  function perDomain(id, title, unit, kind, table, stages, note) {
    const spans = layout(stages), series = [];
    data.domains.forEach((name, d) => {
      if (!visible(d)) return;
      const points = smoothed(line(main(), spans, kind, (t) => t[table][d]));
      if (any(points)) series.push({ label: name, points, color: seriesColor(d), dash: seriesDash(d), width: 1.8 });
    });
    return { id, title, spans, series, format: loss, unit, note };
  }

  function mixtureFigures() {
    const spans = layout(PRUNED);
    const points = line(main(), spans, "evaluations", (t) => t.divergence);
    const divergence = { id: "divergence", title: "How far the mixture leans", spans, format: plain, least: 0,
      unit: "divergence (halved chi-square)",
      series: any(points) ? [{ label: "weights from reference ratio", points, color: "accent", width: 2, stepped: true }] : [],
      lines: main().rho === null ? [] : [{ at: main().rho, label: "rho " + main().rho }] };
    const excess = perDomain("excess", "Excess over the reference loss", "nats per token", "evaluations", "excess_loss",
      PRUNED, "The domains that lie highest are the ones the robust mixture gives more data.");
    excess.lines = [{ at: 0, label: "" }];
    const weights = stacked("weights", "Weights sampled", "weights");
    const known = points.y.filter((value) => value !== null);
    if (known.length && Math.max(...known) - Math.min(...known) < 1e-6) { // a flat line is a sentence
      divergence.series = [];
      weights.note = "Divergence from the reference ratio (halved chi-square): " + plain(known[0]) + " at every evaluation" +
        (main().rho === null ? "." : ", rho " + main().rho + ".");
    }
    return [weights,
      stacked("reference-ratio", "Reference ratio", "reference_ratio"), excess, divergence];
  }

  function sparsityFigures() {
    const spans = layout(["prune"]);
    const kinds = data.kinds.map((kind, k) => {
      const expected = smoothed(line(main(), spans, "taken", (t) => t.expected[k]));
      const scheduled = line(main(), spans, "taken", (t) => t.scheduled[k]);
      const series = [];
      if (any(scheduled)) series.push({ label: "scheduled", points: scheduled, color: "ink", dash: [2, 2], width: 1.5 });
      if (any(expected)) series.push({ label: "expected", points: expected, color: seriesColor(k), dash: seriesDash(k), width: 2.2 });
      return { id: "sparsity-" + k, title: kind, spans, series, format: share, unit: "fraction removed", small: true, least: 0 };
    });
    const multipliers = [["linear", "Linear multipliers"], ["quadratic", "Quadratic multipliers"]].map(([table, title]) => {
      const series = [];
      data.kinds.forEach((kind, k) => {
        const points = smoothed(line(main(), spans, "taken", (t) => t[table][k]));
        if (any(points)) series.push({ label: kind, points, color: seriesColor(k), dash: seriesDash(k), width: 1.8 });
      });
      return { id: "multipliers-" + table, title, spans, series, format: plain, unit: "multiplier, nats" };
    });
    return [...kinds, ...multipliers];
  }

  function trainingFigures() {
    const stages = [...new Set(["pretrain", ...PRUNED, ...main().stages.map((stage) => stage.name)])];
    const spans = layout(stages);
    const one = (id, title, unit, name, format, least) => {
      const series = [];
      others().forEach(({ run }, rank) => {
        const points = smoothed(line(run, spans, "taken", (t) => t[name] && t[name].mean));
        if (any(points)) series.push({ label: run.label, points, color: "muted", dash: OTHER_DASHES[rank % 3], width: 1.2 });
      });
      const low = line(main(), spans, "taken", (t) => t[name] && t[name].low);
      const high = line(main(), spans, "taken", (t) => t[name] && t[name].high);
      if (any(low)) {
        series.push({ label: "largest", points: high, color: "accent", width: 0, bandTo: 1 });
        series.push({ label: "least", points: low, color: "accent", width: 0 });
      }
      const raw = line(main(), spans, "taken", (t) => t[name] && t[name].mean);
      if (any(raw)) {
        if (state.smoothing) series.push({ label: "each step", points: raw, color: "accent", width: 1, alpha: 0.3 });
        series.push({ label: data.runs.length > 1 ? main().label : title, points: smoothed(raw), color: "accent", width: 1.6, key: true });
      }
      return { id, title, spans, series, format, unit, least, marks: true };
    };
    return [
      one("training-loss", "Training loss", "nats per token", "loss", loss),
      perDomain("training-domains", "Training loss per domain", "nats per token", "taken", "domain_losses", stages),
      one("throughput", "Throughput", "tokens per second", "tokens_per_second", plain, 0),
      one("utilisation", "Model FLOPs utilisation", "share of the device's peak", "utilisation", share, 0),
      one("loader-wait", "Waiting for data", "seconds per step", "loader_wait", plain, 0),
      one("memory", "Peak memory", "GiB", "memory", plain, 0),
      one("learning-rate", "Learning rate", "", "learning_rate", plain, 0),
      one("gradient-norm", "Gradient norm", "before clipping", "grad_norm", plain, 0),
    ];
  }

  const SECTIONS = { losses: lossFigures, mixture: mixtureFigures, sparsity: sparsityFigures, training: trainingFigures };

  /* ---------- one figure ---------- */
  function element(tag, attributes, text) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function aligned(figure) {
    const tables = figure.series.map((each) => [each.points.x, each.points.y]);
    return tables.length === 1 ? tables[0] : uPlot.join(tables);
  }

  function summary(figure) {
    const ends = figure.series.filter((each) => each.width > 0).slice(0, 12).map((each) => {
      const known = each.points.x.map((x, i) => valueAt(each, x, each.points.y[i])).filter((v) => v !== null && v !== undefined);
      return known.length ? each.label + " from " + figure.format(known[0]) + " to " + figure.format(known[known.length - 1]) : "";
    });
    return figure.title + (figure.unit ? ", in " + figure.unit : "") + ". " + ends.filter(Boolean).join("; ") +
      ". Arrow keys read values, plus and minus zoom, Escape shows all.";
  }
  const valueAt = (series, x, y) => (series.shown ? series.shown.get(x) : y);

  class Chart {
    constructor(figure, host) {
      this.box = element("figure", { id: figure.id });
      this.title = element("h3");
      this.legend = element("ul", { class: "legend" });
      this.plot = element("div", { class: "plot", tabindex: "0", role: "img" });
      this.tip = element("div", { class: "tip", hidden: "" });
      this.note = element("figcaption");
      this.box.append(this.title, this.legend, this.plot, this.note);
      this.plot.append(this.tip);
      host.append(this.box);
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.plot.addEventListener("blur", () => this.away());
      this.plot.addEventListener("mousedown", () => { pressed = this; });
      this.plot.addEventListener("dblclick", () => zoom(this.group, null));
      this.update(figure);
    }

    update(figure) {
      this.figure = figure;
      this.group = figure.spans.map((each) => each.name).join("+");
      this.box.hidden = Boolean(figure.hidden) || !figure.series.length;
      this.title.textContent = figure.title;
      this.note.textContent = figure.note || "";
      this.note.hidden = !figure.note;
      this.plot.setAttribute("aria-label", summary(figure));
      this.keys();
      if (this.box.hidden) return;
      const signature = JSON.stringify([state.x, figure.series.map((s) => [s.color, s.dash, s.width, s.stack, s.stepped]), figure.spans.map((s) => s.name)]);
      const values = aligned(figure);
      if (this.u && signature === this.signature) {
        this.u.setData(values, false);
        this.u.setScale("x", this.range());
      } else {
        if (this.u) this.u.destroy();
        this.u = new uPlot(this.options(), values, this.plot);
      }
      this.signature = signature;
      this.box.dataset.points = String(values[0].length);
    }

    keys() {
      const named = this.figure.small ? [] : this.figure.series.filter((each) => each.label && (each.width > 0));
      const worth = named.length > 1 || this.figure.stack ? named : [];
      this.legend.replaceChildren(...worth.map((each) => {
        const item = element("li");
        const key = element("i", { class: this.figure.stack ? "block" : (each.dash || []).length ? (each.dash[0] > 4 ? "dashed" : "dotted") : "line" });
        key.style.color = "var(--" + each.color + ")";
        if (this.figure.stack) key.style.opacity = each.stack;
        item.append(key, each.label);
        return item;
      }));
      this.legend.hidden = !worth.length;
    }

    range() {
      const [min, max] = state.zoom[this.group] || [0, 1];
      return { min, max };
    }

    size() {
      const wide = Math.max(160, this.plot.clientWidth);
      return { width: wide, height: Math.round(Math.min(Math.max(wide * (this.figure.small ? 0.62 : 0.56), 10 * rem()), 26 * rem())) };
    }

    options() {
      const chart = this, font = () => 0.8 * rem() + "px " + css("sans");
      const bands = [];
      this.figure.series.forEach((each, i) => {
        if (each.bandTo) bands.push({ series: [i + 1, i + 2], fill: () => faded(each.color, 0.2) });
        if (each.stack && i) bands.push({ series: [i + 1, i] });
      });
      return {
        ...this.size(),
        legend: { show: false },
        padding: [0.9 * rem(), 1.3 * rem(), 0, 0],
        cursor: {
          sync: { key: "x", setSeries: false, scales: ["x", null] },
          points: { show: !this.figure.stack, size: 6 }, y: false, drag: { x: true, y: false, dist: 6, setScale: false },
        },
        scales: {
          x: { time: false, range: () => { const r = chart.range(); return [r.min, r.max]; } },
          y: { range: (u, low, high) => chart.heights(low, high) },
        },
        axes: [
          { stroke: () => css("muted"), font: font(), size: 2.1 * rem(), gap: 4, grid: { show: false },
            ticks: { stroke: () => css("grid"), width: 1, size: 4 },
            splits: (u, axis, low, high) => {
              chart.ticks = ticks(chart.figure.spans, low, high, Math.max(2, Math.floor(u.bbox.width / devicePixelRatio / (3.4 * rem()))));
              return chart.ticks.map((tick) => tick.at);
            },
            values: () => chart.ticks.map((tick) => tick.label) },
          { stroke: () => css("muted"), font: font(), gap: 4, grid: { stroke: () => css("grid"), width: 1 },
            ticks: { show: false }, space: 2.6 * rem(),
            size: (u, values) => Math.max(...(values || [""]).map((v) => String(v).length), 3) * 0.5 * rem() + 0.9 * rem(),
            values: (u, splits) => splits.map(chart.figure.axisFormat || axisNumber) },
        ],
        series: [{}, ...this.figure.series.map((each) => ({
          label: each.label,
          stroke: each.width ? () => (each.stack ? css("paper") : each.alpha ? faded(each.color, each.alpha) : css(each.color)) : null,
          width: each.width, dash: each.dash,
          fill: each.stack ? () => faded(each.color, each.stack) : undefined,
          paths: each.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
          points: { show: each.points.x.length < 2 }, spanGaps: false,
        }))],
        bands,
        hooks: {
          draw: [(u) => chart.overlay(u)],
          setCursor: [(u) => chart.hover(u)],
          setSelect: [(u) => {
            const chosen = pressed === chart && u.select.width > 5; // the others' selections follow by themselves
            if (chosen) {
              zoom(chart.group, [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
            }
            if (u.select.width) u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          }],
        },
      };
    }

    heights(low, high) {
      if (this.figure.range) return this.figure.range;
      if (low === null || high === null) return [0, 1];
      for (const each of this.figure.lines || []) { low = Math.min(low, each.at); high = Math.max(high, each.at); }
      if (this.figure.least !== undefined && low >= this.figure.least) low = this.figure.least;
      const room = 0.07 * (high - low || Math.abs(high) || 1);
      return [low === this.figure.least ? low : low - room, high + room];
    }

    /* Stage borders and names, constant lines, incidents. */
    overlay(u) {
      const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
      ctx.save();
      ctx.font = 0.75 * rem() * ratio + "px " + css("sans");
      ctx.lineWidth = ratio;
      const inside = (x) => x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1;
      const vertical = (x, dash, color) => {
        ctx.setLineDash(dash); ctx.strokeStyle = color; ctx.beginPath();
        ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      };
      this.figure.spans.forEach((each, index) => {
        const left = u.valToPos(each.left, "x", true), right = u.valToPos(each.right, "x", true);
        if (index && inside(left)) vertical(left, [], css("muted"));
        const from = Math.max(left, bbox.left), to = Math.min(right, bbox.left + bbox.width);
        ctx.fillStyle = css("muted"); ctx.textBaseline = "bottom"; ctx.textAlign = "left";
        if (to - from > ctx.measureText(each.name).width + 4 * ratio) ctx.fillText(each.name, from + 2 * ratio, bbox.top - ratio);
        if (!this.figure.marks) return;
        const stage = main().stages.find((s) => s.name === each.name);
        if (!stage || state.x === "time" || !stage.steps) return;
        for (const [step] of stage.incidents) {
          const x = u.valToPos(each.left + ((each.right - each.left) * step) / stage.steps, "x", true);
          if (inside(x)) vertical(x, [2 * ratio, 3 * ratio], css("s1"));
        }
      });
      for (const each of this.figure.lines || []) {
        const y = u.valToPos(each.at, "y", true);
        if (y < bbox.top || y > bbox.top + bbox.height) continue;
        ctx.setLineDash(each.label ? [5 * ratio, 3 * ratio] : []); ctx.strokeStyle = css("muted"); ctx.beginPath();
        ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
        if (each.label) {
          ctx.fillStyle = css("muted"); ctx.textAlign = "right"; ctx.textBaseline = "bottom";
          ctx.fillText(each.label, bbox.left + bbox.width - 2 * ratio, y - ratio);
        }
      }
      ctx.restore();
    }

    /* Each series at its point nearest to the cursor: runs are not evaluated at the same places. */
    nearest(x) {
      return this.figure.series.filter((each) => each.width > 0).map((each) => {
        const xs = each.points.x;
        let low = 0, high = xs.length - 1;
        while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
        const order = each.stepped ? [low, high] : x - xs[low] < xs[high] - x ? [low, high] : [high, low];
        const at = order.find((i) => each.points.y[i] !== null && each.points.y[i] !== undefined && (!each.stepped || xs[i] <= x + 1e-9 || i === 0));
        return at === undefined ? null : { series: each, value: valueAt(each, xs[at], each.points.y[at]) };
      }).filter((each) => each && each.value !== null && each.value !== undefined);
    }

    where(x) {
      const each = this.figure.spans.find((s) => x <= s.right) || this.figure.spans[this.figure.spans.length - 1];
      return each.name + ", " + place(((x - each.left) / (each.right - each.left)) * each.length) + (state.x === "time" ? "" : " " + UNITS[state.x]);
    }

    hover(u) {
      const left = u.cursor.left;
      const own = this.plot.matches(":hover") || document.activeElement === this.plot;
      if (left === undefined || left < 0 || !own) { this.tip.hidden = true; return; }
      const x = u.posToVal(left, "x"), found = this.nearest(x);
      if (!found.length) { this.tip.hidden = true; return; }
      if (!this.figure.small) found.sort((a, b) => b.value - a.value);
      const rows = found.map((each) => {
        const row = element("div"), key = element("i", { class: "block" });
        key.style.color = "var(--" + each.series.color + ")";
        row.append(key, element("span", {}, each.series.label), element("b", {}, this.figure.format(each.value)));
        return row;
      });
      this.tip.replaceChildren(element("div", { class: "at" }, this.where(x)), ...rows);
      this.tip.classList.toggle("many", rows.length > 10);
      this.tip.hidden = false;
      const before = left > u.over.clientWidth / 2;
      const start = u.over.offsetLeft + left;
      this.tip.style.left = before ? "" : start + 12 + "px";
      this.tip.style.right = before ? this.plot.clientWidth - start + 12 + "px" : "";
    }

    key(event) {
      const u = this.u, width = u.over.clientWidth;
      const at = u.cursor.left === undefined || u.cursor.left < 0 ? 0 : u.cursor.left;
      const step = event.shiftKey ? width / 10 : width / 60;
      const { min, max } = this.range(), middle = u.posToVal(at, "x");
      const moves = { ArrowRight: Math.min(width, at + step), ArrowLeft: Math.max(0, at - step), Home: 0, End: width };
      if (event.key in moves) {
        u.setCursor({ left: moves[event.key], top: u.over.clientHeight / 2 });
        const x = u.posToVal(moves[event.key], "x");
        say(this.where(x) + ": " + this.nearest(x).map((each) => each.series.label + " " + this.figure.format(each.value)).join(", "));
      } else if (event.key === "+" || event.key === "=") {
        const half = (max - min) / 4;
        zoom(this.group, [Math.max(0, middle - half), Math.min(1, middle + half)]);
      } else if (event.key === "-") {
        const half = max - min;
        zoom(this.group, [Math.max(0, middle - half), Math.min(1, middle + half)]);
      } else if (event.key === "Escape") {
        zoom(this.group, null);
        this.away();
      } else return;
      event.preventDefault();
    }

    away() {
      this.tip.hidden = true;
      if (this.u) this.u.setCursor({ left: -10, top: -10 });
    }
  }

  function zoom(group, range) {
    if (range && range[1] - range[0] < 0.999) state.zoom[group] = range;
    else delete state.zoom[group];
    for (const chart of charts) if (chart.group === group && chart.u) chart.u.setScale("x", chart.range());
    $("#zoom-out").disabled = !Object.keys(state.zoom).length;
  }

  const say = (text) => { $("#message").textContent = text; };

  /* ---------- the page ---------- */
  function draw() {
    computed = getComputedStyle(root);
    for (const [section, figures] of Object.entries(SECTIONS)) {
      const host = $("#" + section + " .figures");
      const shownFigures = figures();
      let drawn = 0;
      host.hidden = $("#" + section).hidden = false; // what is hidden has no width
      for (const figure of shownFigures) {
        let chart = charts.find((each) => each.figure.id === figure.id);
        if (!chart) {
          chart = new Chart(figure, $(figure.small ? ".small" : ".pair", host));
          charts.push(chart);
        } else chart.update(figure);
        if (!chart.box.hidden) drawn++;
      }
      for (const chart of charts)
        if (host.contains(chart.box) && !shownFigures.some((figure) => figure.id === chart.figure.id)) chart.box.hidden = true;
      host.hidden = !drawn && !shownFigures.some((figure) => figure.hidden);
    }
    sections();
    makeTablesSortable(document);
    $("#zoom-out").disabled = !Object.keys(state.zoom).length;
  }

  /* A section without figures and text is left out, with its link. */
  function sections() {
    for (const section of $$("main > section")) {
      const figures = $(".figures", section);
      section.hidden = figures ? figures.hidden : !$("[data-part]", section).innerHTML.trim();
      for (const link of $$('nav a[href="#' + section.id + '"]')) link.hidden = section.hidden;
    }
  }

  function redraw() {
    computed = getComputedStyle(root);
    for (const chart of charts) if (chart.u && !chart.box.hidden) { chart.u.setSize(chart.size()); chart.u.redraw(false); }
  }

  function toggles() {
    const host = $("#domains");
    if (host.childElementCount === data.domains.length && data.domains.every((name, d) => host.children[d].textContent === name)) return;
    host.replaceChildren(...data.domains.map((name, d) => {
      const button = element("button", { type: "button", "aria-pressed": String(visible(d)) });
      const key = element("i", { class: "block" });
      key.style.color = "var(--" + seriesColor(d) + ")";
      button.append(key, name);
      button.addEventListener("click", (event) => {
        if (event.shiftKey || event.altKey) {
          const alone = state.hidden.size === data.domains.length - 1 && visible(d);
          state.hidden = new Set(alone ? [] : data.domains.filter((other) => other !== name));
        } else if (!state.hidden.delete(name)) state.hidden.add(name);
        [...host.children].forEach((each, at) => each.setAttribute("aria-pressed", String(visible(at))));
        draw();
      });
      return button;
    }));
  }

  function stageChoices() {
    const select = $("#stage");
    const names = PRUNED.filter((name) => data.runs.some((run) => run.stages.some((stage) => stage.name === name)));
    const values = ["all", ...names];
    if ([...select.options].map((each) => each.value).join() === values.join()) return;
    select.replaceChildren(...values.map((name) => element("option", { value: name }, name)));
    select.value = state.stage = values.includes(state.stage) ? state.stage : "all";
  }

  function runChoices() {
    const select = $("#run");
    select.parentElement.hidden = data.runs.length < 2;
    if ([...select.options].map((each) => each.text).join("\n") !== data.runs.map((run) => run.label).join("\n"))
      select.replaceChildren(...data.runs.map((run, index) => element("option", { value: index }, run.label)));
    state.run = Math.min(state.run, data.runs.length - 1);
    select.value = state.run;
    for (const part of $$("[data-run]")) part.hidden = part.dataset.run !== String(state.run);
  }

  function show(next) {
    data = next;
    runChoices();
    stageChoices();
    toggles();
    draw();
    performance.mark("drawn");
    root.dataset.drawn = String(charts.filter((chart) => !chart.box.hidden).length);
  }

  function controls() {
    let waiting = false;
    const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
    $$("input[name=x]").forEach((input) => input.addEventListener("change", () => { state.x = input.value; soon(); }));
    $("#stage").addEventListener("change", (event) => { state.stage = event.target.value; state.zoom = {}; soon(); });
    $("#run").addEventListener("change", (event) => { state.run = +event.target.value; runChoices(); soon(); });
    $("#smoothing").addEventListener("input", (event) => { state.smoothing = +event.target.value; soon(); });
    $("#zoom-out").addEventListener("click", () => { for (const group of Object.keys(state.zoom)) zoom(group, null); });
    $("#theme").addEventListener("change", (event) => {
      if (event.target.value === "auto") delete root.dataset.theme; else root.dataset.theme = event.target.value;
      redraw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let before;
    addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; redraw(); });
    addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; redraw(); });
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(redraw); } });
    $(".controls").hidden = false;
    $("#unscripted").remove();
  }

  controls();
  const inline = $("#data");
  if (inline) show(JSON.parse(inline.textContent));
  if ($("#live")) live();

  /* ---------- live: the server sends the page's parts and data whenever they change ---------- */
  function live() {
    const status = $("#live"), written = new Map();
    const query = new URLSearchParams(location.search);
    query.set("version", status.dataset.version);
    const source = new EventSource("events?" + query);
    source.addEventListener("open", () => { if (status.textContent === "connecting") status.textContent = "live"; });
    source.addEventListener("message", (event) => {
      const sent = JSON.parse(event.data);
      for (const [name, html] of Object.entries(sent.parts)) {
        const part = $('[data-part="' + name + '"]');
        if (written.get(name) !== html) { part.innerHTML = html; written.set(name, html); } // escaped by the server
      }
      document.title = sent.title;
      show(sent.data);
      status.textContent = sent.status;
      root.dataset.updates = String(+(root.dataset.updates || 0) + 1);
    });
    source.addEventListener("error", () => { status.textContent = "The server does not answer; trying again."; });
  }
})();
