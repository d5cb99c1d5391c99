// The losses of a training as inline SVG: stages one after the other, training and held-out.

import { h, svg } from "./dom.js";

const WIDTH = 560, HEIGHT = 240, LEFT = 46, RIGHT = 10, TOP = 12, BOTTOM = 28;
const TICKS = 4;

/**
 * Return a chart and its legend.
 *
 * `points`: `{stage, step, of, loss, held_out_loss?}`, oldest first; a stage's steps begin anew at 1.
 */
export function lossChart(points) {
  const stages = stagesOf(points);
  const series = { loss: lines(points, stages, "loss"), held_out_loss: lines(points, stages, "held_out_loss") };
  const values = Object.values(series).flat(2).map(([, value]) => value);
  const end = Math.max(1, ...stages.map((stage) => stage.begin + stage.of));
  const [low, high, step] = scale(Math.min(...values), Math.max(...values));
  const x = (at) => LEFT + (at / end) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const hasHeldOut = series.held_out_loss.length > 0;
  return [
    svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": describe(points, hasHeldOut) },
      ticks(low, high, step).map((value) => [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, label(value, step)),
      ]),
      stages.map((stage) => [
        stage.begin > 0 && svg("line", { class: "border", x1: x(stage.begin), x2: x(stage.begin), y1: TOP, y2: HEIGHT - BOTTOM }),
        svg("text", { x: x(stage.begin) + 4, y: HEIGHT - 9 }, `${stage.name}, ${stage.of} steps`),
      ]),
      Object.entries(series).flatMap(([name, parts]) => parts.map((part) => (part.length > 1
        ? svg("polyline", { class: name, points: part.map(([at, value]) => `${round(x(at))},${round(y(value))}`).join(" ") })
        : svg("circle", { class: name, cx: x(part[0][0]), cy: y(part[0][1]), r: 3 }))))),
    h("p", { class: "legend hint" }, h("span", { class: "loss" }, "training"), hasHeldOut && h("span", { class: "held_out_loss" }, "held-out pictures")),
  ];
}

/** The stages in order, with the step of the whole at which each begins; a training that was begun anew counts once. */
function stagesOf(points) {
  const stages = [];
  for (const { stage, of, step } of points) {
    const known = stages.find((each) => each.name === stage);
    if (known) known.of = Math.max(known.of, of ?? step);
    else stages.push({ name: stage, of: of ?? step, begin: 0 });
  }
  stages.forEach((stage, index) => { stage.begin = index ? stages[index - 1].begin + stages[index - 1].of : 0; });
  return stages;
}

function lines(points, stages, key) {
  return stages.map((stage) => points
    .filter((point) => point.stage === stage.name && Number.isFinite(point[key]))
    .map((point) => [stage.begin + point.step, point[key]])).filter((part) => part.length);
}

/** Round limits and a round distance of the lines between them. */
function scale(least, most) {
  if (!Number.isFinite(least)) return [0, 1, 0.25];
  const span = most - least || Math.abs(most) || 1;
  const power = 10 ** Math.floor(Math.log10(span / TICKS));
  const step = power * [1, 2, 5, 10].find((factor) => (power * factor * TICKS) >= span);
  return [Math.floor(least / step) * step, Math.ceil((most + step / 10) / step) * step, step];
}

function ticks(low, high, step) {
  return Array.from({ length: Math.round((high - low) / step) + 1 }, (_, index) => low + index * step);
}

const label = (value, step) => value.toFixed(Math.max(0, -Math.floor(Math.log10(step))));
const round = (value) => Math.round(value * 10) / 10;

function describe(points, hasHeldOut) {
  const [first, last] = [points[0], points.at(-1)];
  const heldOut = points.filter((point) => Number.isFinite(point.held_out_loss));
  return `Loss from ${first.loss?.toFixed(3)} to ${last.loss?.toFixed(3)} in ${last.stage} at step ${last.step}`
    + (hasHeldOut ? `, held-out loss from ${heldOut[0].held_out_loss.toFixed(3)} to ${heldOut.at(-1).held_out_loss.toFixed(3)}` : "");
}
