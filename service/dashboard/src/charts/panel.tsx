// The charts of one or several runs: which metrics, over which axis, how they are shown; all of it is the page's URL.
import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { api, need } from "../api/client";
import { watch } from "../api/live";
import { useData } from "../api/use";
import { t, tOr } from "../i18n";
import { Empty, Loading } from "../ui/parts";
import { useQuery } from "../ui/query";
import { type Axis, Chart, type Line, type View } from "./chart";
import { RunSeries } from "./live";
import { band, COLOURS } from "./series";

export interface Run {
  id: string;
  label: string;
  live: boolean;
  /** Runs of one group share a colour, and with `mean` one curve. */
  group?: string | undefined;
}

export function useView(): View & { set: (changes: Record<string, string | null>) => void } {
  const query = useQuery();
  return {
    axis: (query.get("axis") || "step") as Axis,
    log: query.get("log") === "1",
    smoothing: Number(query.get("smooth") || 0),
    clip: query.get("clip") === "1",
    set: query.set,
  };
}

export function ChartTools() {
  const view = useView();
  const axes: Axis[] = ["step", "tokens", "time", "clock"];
  return (
    <div class="toolbar">
      <label for="axis">{t("chart.axis")}</label>
      <select id="axis" value={view.axis} onChange={(event) => view.set({ axis: event.currentTarget.value === "step" ? null : event.currentTarget.value, zoom: null })}>
        {axes.map((axis) => (
          <option key={axis} value={axis}>
            {t(`chart.axis.${axis}`)}
          </option>
        ))}
      </select>
      <label for="smoothing">{t("chart.smoothing")}</label>
      <input
        id="smoothing"
        type="range"
        min="0"
        max="0.99"
        step="0.01"
        value={view.smoothing}
        onChange={(event) => view.set({ smooth: Number(event.currentTarget.value) ? event.currentTarget.value : null })}
      />
      <button type="button" class="chip" aria-pressed={view.log} onClick={() => view.set({ log: view.log ? null : "1" })}>
        {t("chart.log")}
      </button>
      <button type="button" class="chip" aria-pressed={view.clip} onClick={() => view.set({ clip: view.clip ? null : "1" })}>
        {t("chart.clip")}
      </button>
    </div>
  );
}

/** One chart for each metric that any of the runs reported. */
export function Charts({ runs, mean = false, onPick }: { runs: readonly Run[]; mean?: boolean; onPick?: (run: Run, time: number) => void }) {
  const ids = runs.map((run) => run.id).join(",");
  const query = useQuery();
  const filter = query.get("metric");
  const names = useData(
    async (signal) => {
      const all = await Promise.all(runs.map((run) => need(api.GET("/api/v1/jobs/{ref}/series/names", { params: { path: { ref: run.id } }, signal }))));
      return order([...new Set(all.flatMap((one) => one.items.map((item) => item.name)))]);
    },
    [ids],
    runs.filter((run) => run.live).map((run) => `job/${run.id}`),
    3000,
  );
  if (names.data.value === undefined) return <Loading />;
  if (names.data.value.length === 0) return <Empty title={t("chart.none")}>{t("chart.noneText")}</Empty>;
  const shown = names.data.value.filter((name) => name.toLowerCase().includes(filter.toLowerCase()));
  return (
    <div class="stack">
      {names.data.value.length > 8 ? (
        <input type="search" aria-label={t("chart.find")} placeholder={t("chart.find")} value={filter} onInput={(event) => query.set({ metric: event.currentTarget.value || null })} />
      ) : null}
      <div class="charts">
        {shown.map((name) => (
          <Lazy key={name}>{() => <MetricChart name={name} runs={runs} mean={mean} onPick={onPick} />}</Lazy>
        ))}
      </div>
    </div>
  );
}

const FIRST = ["loss", "reward", "reward_mean", "eval_loss", "accuracy", "kl", "lr", "grad_norm", "tokens_per_second"];

function order(names: string[]): string[] {
  const rank = (name: string) => {
    const index = FIRST.findIndex((first) => name === first || name.endsWith(`/${first}`));
    return index < 0 ? FIRST.length : index;
  };
  return names.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** Holds a chart's place; the chart itself lives only while it is near what is seen. */
function Lazy({ children }: { children: () => preact.ComponentChildren }) {
  const place = useRef<HTMLDivElement>(null);
  const near = useSignal(false);
  useEffect(() => {
    const eye = new IntersectionObserver((seen) => (near.value = seen.some((one) => one.isIntersecting)), { rootMargin: "300px" });
    if (place.current) eye.observe(place.current);
    return () => eye.disconnect();
  }, []);
  return (
    <div ref={place} class="chart">
      {near.value ? children() : null}
    </div>
  );
}

function MetricChart({ name, runs, mean, onPick }: { name: string; runs: readonly Run[]; mean: boolean; onPick: ((run: Run, time: number) => void) | undefined }) {
  const view = useView();
  const zoom: Signal<[number, number] | null> = useSignal(null);
  const width = runs.length > 8 ? 300 : 700;
  const key = `${runs.map((run) => run.id).join()}|${name}|${view.axis}|${zoom.value?.join() ?? ""}`;
  const sources = useMemo(() => runs.map((run) => new RunSeries(run.id, name, view.axis, zoom.value, width)), [key]);
  const drawn = useSignal<readonly Line[]>([]);
  const restarts = useSignal<readonly { x: number; text: string }[]>([]);
  const draw = () => {
    const lines = runs.flatMap((run, index): Line[] => {
      const data = sources[index]!.data.value;
      return data && data.x.length ? [{ label: run.label, x: data.x, y: data.y, marks: data.marks, colour: colourOf(runs, run) }] : [];
    });
    drawn.value = mean ? grouped(runs, lines) : lines;
    const only = runs.length === 1 ? sources[0]!.data.value : null;
    restarts.value = (only?.restarts ?? []).map((one) => ({ x: one.x, text: tOr(`reason.${one.reason}`, t("chart.attempt", { number: one.attempt })) }));
  };
  useEffect(() => {
    let ended = false;
    const refresh = (source: RunSeries) =>
      source.refresh().then(
        () => {
          if (!ended) draw();
        },
        () => undefined,
      );
    void Promise.all(sources.map(refresh));
    const unwatch = runs.map((run, index) => (run.live ? watch([`job/${run.id}`], () => void refresh(sources[index]!)) : () => undefined));
    return () => {
      ended = true;
      for (const end of unwatch) end();
    };
  }, [key, mean]);
  return (
    <Chart
      title={name}
      lines={drawn.value}
      view={view}
      restarts={restarts.value}
      zoom={zoom.value}
      onZoom={(range) => (zoom.value = range)}
      onPick={onPick && runs.length === 1 ? (x) => onPick(runs[0]!, timeOf(sources[0]!, x)) : undefined}
    />
  );
}

function timeOf(source: RunSeries, x: number): number {
  const data = source.data.peek();
  if (!data?.times) return x;
  const index = data.x.findIndex((one) => one >= x);
  return data.times[index < 0 ? data.times.length - 1 : index] ?? x;
}

function colourOf(runs: readonly Run[], run: Run): string {
  const groups = [...new Set(runs.map((one) => one.group ?? one.id))];
  return COLOURS[groups.indexOf(run.group ?? run.id) % COLOURS.length]!;
}

function grouped(runs: readonly Run[], lines: readonly Line[]): Line[] {
  const groups = [...new Set(runs.map((run) => run.group ?? run.label))];
  return groups.flatMap((group, index): Line[] => {
    const labels = new Set(runs.filter((run) => (run.group ?? run.label) === group).map((run) => run.label));
    const members = lines.filter((line) => labels.has(line.label));
    if (members.length === 0) return [];
    const { x, mean, std } = band(members);
    return [{ label: t("chart.group", { group, count: members.length }), x, y: mean, spread: std, colour: COLOURS[index % COLOURS.length]! }];
  });
}
