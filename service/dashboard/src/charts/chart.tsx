// One chart: curves over one axis, zoomed by dragging, drawn by uPlot; a view only, data comes from outside.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { t } from "../i18n";
import { clock, duration, number } from "../lib/format";
import { align, COLOURS, type Curve, extremes, range, smooth } from "./series";

export type Axis = "step" | "tokens" | "time" | "clock";

export interface Line extends Curve {
  label: string;
  /** Where the value was not a number, or infinite: marked at the foot of the chart. */
  marks?: readonly number[];
  colour?: string;
  /** Half the height of a band around the curve. */
  spread?: readonly number[];
}

export interface View {
  axis: Axis;
  log: boolean;
  smoothing: number;
  clip: boolean;
}

interface Props {
  title: string;
  lines: readonly Line[];
  view: View;
  /** Where a later attempt began, with why. */
  restarts?: readonly { x: number; text: string }[];
  /** The part of the axis that is shown; null: all. */
  zoom?: readonly [number, number] | null;
  onZoom?: (range: [number, number] | null) => void;
  onPick?: (x: number) => void;
  children?: ComponentChildren;
}

export function Chart({ title, lines, view, restarts = [], zoom = null, onZoom, onPick, children }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const hover = useSignal<{ x: number; values: (number | null)[] } | null>(null);
  const shown = lines.map((line) => ({ ...line, y: smooth(line.y, view.smoothing) }));
  const raw = view.smoothing > 0;
  useEffect(() => {
    const target = box.current;
    if (!target) return;
    const build = () => {
      plot.current?.destroy();
      const style = getComputedStyle(document.documentElement);
      const colour = (name: string) => style.getPropertyValue(name).trim();
      const all = raw ? [...shown, ...lines] : shown;
      const data = align(all) as unknown as uPlot.AlignedData;
      const limits = view.clip ? range(lines.flatMap((line) => line.y), 0.01) : null;
      const axis: uPlot.Axis = { stroke: colour("--muted"), grid: { stroke: colour("--border"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
      plot.current = new uPlot(
        {
          width: Math.max(120, target.clientWidth),
          height: 210,
          padding: [8, 18, 0, 0],
          legend: { show: false },
          cursor: { drag: { x: Boolean(onZoom), y: false }, focus: { prox: 24 }, points: { size: 6 } },
          scales: {
            x: { time: false, ...(zoom ? { range: () => [zoom[0], zoom[1]] as [number, number] } : {}) },
            y: { distr: view.log ? 3 : 1, ...(limits && limits[0] < limits[1] ? { range: () => limits } : {}) },
          },
          axes: [
            { ...axis, size: 26, values: (_, ticks) => ticks.map((tick) => label(tick, view.axis)) },
            { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick))) },
          ],
          series: [
            {},
            ...shown.map((line, index): uPlot.Series => ({ label: line.label, stroke: line.colour ?? COLOURS[index % COLOURS.length]!, width: 1.6, spanGaps: lines.length > 1, points: { show: line.x.length < 40 } })),
            ...(raw ? lines.map((line, index): uPlot.Series => ({ label: line.label, stroke: `${line.colour ?? COLOURS[index % COLOURS.length]!}40`, width: 1, spanGaps: lines.length > 1, points: { show: false } })) : []),
          ],
          hooks: {
            draw: [(u) => decorate(u, shown, restarts, colour)],
            setCursor: [
              (u) => {
                const at = u.cursor.idx;
                hover.value = at === null || at === undefined ? null : { x: Number(u.data[0][at]), values: shown.map((_, index) => u.data[index + 1]?.[at] ?? null) };
              },
            ],
            setSelect: [
              (u) => {
                if (u.select.width < 4) return;
                const from = u.posToVal(u.select.left, "x");
                const to = u.posToVal(u.select.left + u.select.width, "x");
                u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
                onZoom?.([from, to]);
              },
            ],
          },
        },
        data,
        target,
      );
    };
    build();
    const size = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(120, target.clientWidth), height: 210 }));
    size.observe(target);
    document.addEventListener("theme", build);
    return () => {
      size.disconnect();
      document.removeEventListener("theme", build);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [lines, view.axis, view.log, view.smoothing, view.clip, zoom, restarts]);
  const at = hover.value;
  return (
    <figure class="card chart">
      <header>
        <h2 title={title}>{title}</h2>
        {zoom && onZoom ? (
          <button type="button" class="button small" onClick={() => onZoom(null)}>
            {t("chart.all")}
          </button>
        ) : null}
        {children}
      </header>
      <div
        class="canvas"
        ref={box}
        role="img"
        aria-label={describe(title, lines)}
        onDblClick={() => onZoom?.(null)}
        onClick={(event) => {
          if (onPick && event.altKey === false && at && (event.target as HTMLElement).closest(".u-over") && event.detail === 1) onPick(at.x);
        }}
      />
      <figcaption class="legend">
        {at ? <span class="mono">{label(at.x, view.axis)}</span> : null}
        {shown.map((line, index) => (
          <span key={line.label} class="nowrap">
            <Swatch colour={line.colour ?? COLOURS[index % COLOURS.length]!} />
            {line.label} <span class="mono">{number(at ? (at.values[index] ?? null) : extremes(line.y).last)}</span>
          </span>
        ))}
      </figcaption>
    </figure>
  );
}

function Swatch({ colour }: { colour: string }) {
  return <i ref={(mark) => void (mark && (mark.style.background = colour))} />;
}

function label(x: number, axis: Axis): string {
  if (axis === "clock") return clock(x);
  if (axis === "time") return duration(x);
  return number(Math.round(x * 100) / 100);
}

function describe(title: string, lines: readonly Line[]): string {
  return `${title}: ${lines.map((line) => { const { min, max, last } = extremes(line.y); return `${line.label} ${number(last)} (${number(min)} – ${number(max)})`; }).join("; ")}`;
}

/** Bands, restarts and values that are no numbers: what uPlot itself doesn't draw. */
function decorate(u: uPlot, lines: readonly Line[], restarts: Props["restarts"], colour: (name: string) => string): void {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  lines.forEach((line, index) => {
    if (!line.spread) return;
    ctx.fillStyle = `${line.colour ?? COLOURS[index % COLOURS.length]!}2e`;
    ctx.beginPath();
    const points = line.x.map((x, at) => ({ x: u.valToPos(x, "x", true), y: line.y[at] ?? null, s: line.spread![at] ?? 0 })).filter((point) => point.y !== null);
    points.forEach((point, at) => ctx[at ? "lineTo" : "moveTo"](point.x, u.valToPos(point.y! + point.s, "y", true)));
    points.reverse().forEach((point) => ctx.lineTo(point.x, u.valToPos(point.y! - point.s, "y", true)));
    ctx.fill();
  });
  ctx.strokeStyle = colour("--warn");
  ctx.setLineDash([4, 4]);
  for (const restart of restarts ?? []) {
    const x = u.valToPos(restart.x, "x", true);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillStyle = colour("--warn");
    ctx.font = `${11 * devicePixelRatio}px system-ui`;
    ctx.fillText(restart.text, x + 4, bbox.top + 12 * devicePixelRatio);
  }
  ctx.setLineDash([]);
  ctx.fillStyle = colour("--bad");
  for (const line of lines)
    for (const x of line.marks ?? []) {
      const left = u.valToPos(x, "x", true);
      const foot = bbox.top + bbox.height;
      ctx.beginPath();
      ctx.moveTo(left - 4 * devicePixelRatio, foot);
      ctx.lineTo(left + 4 * devicePixelRatio, foot);
      ctx.lineTo(left, foot - 8 * devicePixelRatio);
      ctx.fill();
    }
  ctx.restore();
}
