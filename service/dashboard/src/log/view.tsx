// A log of any length: the scroll bar stands for all of it, only the lines in sight are in the page.
import { useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { Job } from "../api/client";
import { watch } from "../api/live";
import { t } from "../i18n";
import { clock } from "../lib/format";
import { attempt } from "../ui/parts";
import { useQuery } from "../ui/query";
import { type Line, Source } from "./source";
import { folded, level, matcher, pieces } from "./text";

const ROW = 19;
/** Browsers can't lay out more: beyond it the scroll bar is a scale, and the wheel moves by lines. */
const TALLEST = 8_000_000;
export const FIRST_ERROR = String.raw`(error|exception|traceback|fatal|critical|out of memory|segfault|panic)\b`;

export function LogView({ job }: { job: Job }) {
  const query = useQuery();
  const latest = job.attempts?.at(-1)?.number ?? null;
  const attemptNumber = query.get("attempt") ? Number(query.get("attempt")) : latest;
  const replica = query.get("rank") === "" ? null : Number(query.get("rank"));
  const ranks = job.attempts?.find((one) => one.number === attemptNumber)?.replicas ?? [];
  const source = useMemo(() => new Source(job.id, { attempt: attemptNumber, replica }), [job.id, attemptNumber, replica]);
  const box = useRef<HTMLDivElement>(null);
  const top = useSignal(0);
  const height = useSignal(600);
  const moment = query.get("time");
  const follow = useSignal(query.get("line") === "" && !moment);
  const wrapped = query.get("wrap") === "1";
  const asked = query.get("line") ? Number(query.get("line")) - 1 : null;
  const text = useSignal(query.get("q"));
  const regex = query.get("re") === "1";
  const found = useSignal<number | null>(asked);
  const none = useSignal(false);
  const setting = useRef(false);

  const visible = Math.max(1, Math.floor(height.value / ROW));
  const total = source.total.value;
  const tall = Math.min(TALLEST, Math.max(total * ROW, 1));
  const most = Math.max(0, total - visible);

  const place = (line: number) => {
    const to = Math.min(Math.max(0, line), Math.max(0, source.total.peek() - visible));
    top.value = to;
    const view = box.current;
    if (!view) return;
    const span = Math.min(TALLEST, source.total.peek() * ROW) - view.clientHeight;
    const end = Math.max(1, source.total.peek() - visible);
    setting.current = true;
    view.scrollTop = span <= 0 ? 0 : (to / end) * span;
  };

  useEffect(() => {
    let ended = false;
    const look = async () => {
      await source.refresh();
      if (ended) return;
      if (follow.value) place(source.total.peek());
    };
    void look().then(async () => {
      if (asked !== null) place(asked - Math.floor(visible / 3));
      else if (moment) show(await source.at(Number(moment)));
    });
    const unwatch = watch([`job/${job.id}`], () => void look());
    return () => {
      ended = true;
      unwatch();
    };
  }, [source]);

  useEffect(() => {
    const view = box.current;
    if (!view) return;
    const size = new ResizeObserver(() => (height.value = view.clientHeight));
    size.observe(view);
    return () => size.disconnect();
  }, []);

  useSignalEffect(() => {
    if (follow.value && source.total.value) place(source.total.value);
  });

  const onScroll = () => {
    const view = box.current!;
    if (setting.current) {
      setting.current = false;
      return;
    }
    const span = view.scrollHeight - view.clientHeight;
    const share = span <= 0 ? 0 : view.scrollTop / span;
    top.value = share * most;
    follow.value = share > 0.999;
  };

  const onWheel = (event: WheelEvent) => {
    if (tall < TALLEST || event.ctrlKey) return;
    event.preventDefault();
    follow.value = false;
    place(top.value + event.deltaY / ROW);
  };

  const search = async (back: boolean) => {
    if (!text.value) return;
    query.set({ q: text.value });
    const from = found.value === null ? Math.floor(top.value) + (back ? 0 : -1) : found.value;
    const hit = await attempt(async () => {
      const near = await source.search(text.value, regex, back ? from - 1 : from + 1, back);
      return near ?? (await source.search(text.value, regex, back ? source.total.peek() : 0, back)); // and around
    });
    none.value = hit === null;
    if (hit === null || hit === undefined) return;
    show(hit);
  };

  const show = (line: number) => {
    follow.value = false;
    found.value = line;
    query.set({ line: String(line + 1), time: null });
    place(line - Math.floor(visible / 3));
  };

  const firstError = async () => {
    const hit = await attempt(() => source.search(FIRST_ERROR, true, 0, false));
    none.value = hit === null;
    if (hit !== null && hit !== undefined) show(hit);
  };

  const onKey = (event: KeyboardEvent) => {
    if ((event.target as HTMLElement).closest("input, select")) return;
    const moves: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: visible - 1, PageUp: 1 - visible, Home: -Infinity, End: Infinity };
    const move = moves[event.key];
    if (move !== undefined) {
      event.preventDefault();
      follow.value = event.key === "End";
      place(move === Infinity ? total : move === -Infinity ? 0 : Math.round(top.value) + move);
    } else if (event.key === "n") void search(false);
    else if (event.key === "N") void search(true);
  };

  void source.version.value; // rows are looked up anew when a block has come
  const first = Math.floor(top.value);
  const rows: [number, Line | undefined][] = [];
  for (let number = first; number < Math.min(total, first + visible + 2); number += 1) rows.push([number, source.line(number)]);
  const marks = text.value ? matcher(text.value, regex) : null;
  const several = ranks.length > 1 && replica === null;

  return (
    <section class="log" aria-label={t("log.title")} onKeyDown={onKey}>
      <div class="log-tools">
        <form
          class="row"
          onSubmit={(event) => {
            event.preventDefault();
            void search(false);
          }}
        >
          <input
            type="search"
            aria-label={t("log.search")}
            placeholder={t("log.search")}
            value={text.value}
            onInput={(event) => {
              text.value = event.currentTarget.value;
              none.value = false;
              found.value = null;
            }}
          />
          <button type="button" class="chip" aria-pressed={regex} title={t("log.regex")} onClick={() => query.set({ re: regex ? null : "1" })}>
            .*
          </button>
          <button type="button" class="button small" aria-label={t("log.previous")} onClick={() => void search(true)}>
            ↑
          </button>
          <button type="submit" class="button small" aria-label={t("log.next")}>
            ↓
          </button>
        </form>
        <button type="button" class="button small" onClick={() => void firstError()}>
          {t("log.firstError")}
        </button>
        <span class="grow" />
        {(job.attempts?.length ?? 0) > 1 ? (
          <select aria-label={t("log.attempt")} value={String(attemptNumber)} onChange={(event) => query.set({ attempt: event.currentTarget.value, line: null })}>
            {job.attempts?.map((one) => (
              <option key={one.number} value={one.number}>
                {t("log.attemptNumber", { number: one.number })}
              </option>
            ))}
          </select>
        ) : null}
        {ranks.length > 1 ? (
          <select aria-label={t("log.rank")} value={query.get("rank")} onChange={(event) => query.set({ rank: event.currentTarget.value, line: null })}>
            <option value="">{t("log.merged")}</option>
            {ranks.map((one) => (
              <option key={one.node_rank} value={one.node_rank}>
                {t("log.rankNumber", { number: one.node_rank })}
              </option>
            ))}
          </select>
        ) : null}
        <button type="button" class="chip" aria-pressed={wrapped} onClick={() => query.set({ wrap: wrapped ? null : "1" })}>
          {t("log.wrap")}
        </button>
        <button
          type="button"
          class="chip"
          aria-pressed={follow.value}
          onClick={() => {
            follow.value = !follow.value;
            if (follow.value) place(total);
          }}
        >
          {t("log.follow")}
        </button>
        <a class="button small" href={`/api/v1/jobs/${job.id}/log?${part(attemptNumber, replica)}`} download>
          {t("log.download")}
        </a>
      </div>
      <div class="log-view" ref={box} onScroll={onScroll} onWheel={onWheel} tabIndex={0} role="log" aria-live="off" aria-label={t("log.title")}>
        <div ref={(spacer) => void (spacer && (spacer.style.height = `${tall}px`))}>
          <div class="log-window" ref={(window) => void (window && (window.style.height = `${height.value}px`))}>
            {rows.map(([number, line]) => (
              <Row
                key={number}
                number={number}
                line={line}
                wrapped={wrapped}
                at={number === found.value}
                marks={marks}
                rank={several}
                link={() => show(number)}
              />
            ))}
            {source.loaded.value && total === 0 ? <p class="empty">{job.finished_at ? t("log.none") : t("log.notYet")}</p> : null}
          </div>
        </div>
      </div>
      <div class="log-foot">
        <span>{t("log.lines", { count: total.toLocaleString("en-US") })}</span>
        {none.value ? <span role="status">{t("log.noMatch")}</span> : null}
        {found.value !== null ? <span>{t("log.atLine", { line: found.value + 1 })}</span> : null}
      </div>
    </section>
  );
}

function part(attemptNumber: number | null, replica: number | null): string {
  const query = new URLSearchParams();
  if (attemptNumber !== null) query.set("attempt", String(attemptNumber));
  if (replica !== null) query.set("replica", String(replica));
  return query.toString();
}

interface RowProps {
  number: number;
  line: Line | undefined;
  wrapped: boolean;
  at: boolean;
  marks: RegExp | null;
  rank: boolean;
  link: () => void;
}

function Row({ number, line, wrapped, at, marks, rank, link }: RowProps) {
  const text = line ? folded(line.text) : "";
  const hit = line !== undefined && marks !== null && marks.test(text);
  const classes = ["log-line", wrapped ? "wrapped" : "", at ? "at" : "", hit ? "hit" : "", line ? level(text) : ""].join(" ");
  return (
    <div class={classes}>
      <a
        href={`?line=${number + 1}`}
        title={line ? clock(line.time) : ""}
        onClick={(event) => {
          event.preventDefault();
          link();
        }}
      >
        {number + 1}
      </a>
      <span>
        {rank && line ? <em class="muted">[{line.replica}] </em> : null}
        {line ? pieces(text).map((piece, index) => <span key={index} class={piece.style}>{piece.text}</span>) : "…"}
        {line?.length ? <em class="muted"> {t("log.cut", { bytes: line.length.toLocaleString("en-US") })}</em> : null}
      </span>
    </div>
  );
}
