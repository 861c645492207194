// A conversation with a model that is being served; two of them side by side; the score that a reward model gives.
import { type Signal, useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { api, type Job, need } from "../api/client";
import { useData } from "../api/use";
import { t } from "../i18n";
import { number } from "../lib/format";
import { Empty, Loading } from "../ui/parts";
import { useQuery } from "../ui/query";
import { useTitle } from "../ui/title";

interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

export function Playground() {
  useTitle(t("nav.playground"));
  const query = useQuery();
  const served = useData((signal) => need(api.GET("/api/v1/jobs", { params: { query: { state: ["running"], type: ["serve"], limit: 50 } }, signal })), [], ["jobs"], 2000);
  const jobs = (served.data.value?.items ?? []).filter((job) => job.url);
  const first = query.get("job") || jobs[0]?.id || "";
  const second = query.get("beside");
  const system = useSignal("");
  const temperature = useSignal(0.7);
  const longest = useSignal(512);
  const draft = useSignal("");
  const sent = useSignal<{ text: string; id: number } | null>(null);
  if (served.data.value === undefined) return <Loading />;
  if (jobs.length === 0)
    return (
      <>
        <header class="page-head">
          <h1 tabIndex={-1}>{t("nav.playground")}</h1>
        </header>
        <div class="card">
          <Empty title={t("play.none")} command="navarch submit jobs/examples/serve.yaml model=artifact:NAME">
            <a href="/submit?type=serve">{t("play.serve")}</a>
          </Empty>
        </div>
      </>
    );
  const send = () => {
    if (!draft.value.trim()) return;
    sent.value = { text: draft.value, id: (sent.value?.id ?? 0) + 1 };
    draft.value = "";
  };
  const settings = { system, temperature, longest };
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.playground")}
        </h1>
        <select aria-label={t("play.model")} value={first} onChange={(event) => query.set({ job: event.currentTarget.value })}>
          {jobs.map((job) => (
            <option key={job.id} value={job.id}>
              {job.name}
            </option>
          ))}
        </select>
        <select aria-label={t("play.beside")} value={second} onChange={(event) => query.set({ beside: event.currentTarget.value || null })}>
          <option value="">{t("play.alone")}</option>
          {jobs.map((job) => (
            <option key={job.id} value={job.id}>
              {job.name}
            </option>
          ))}
        </select>
      </header>
      <details class="card">
        <summary>{t("play.settings")}</summary>
        <div class="fields">
          <div class="field wide">
            <label for="system">{t("play.system")}</label>
            <textarea id="system" rows={2} value={system.value} onInput={(event) => (system.value = event.currentTarget.value)} />
          </div>
          <div class="field">
            <label for="temperature">{t("play.temperature", { value: temperature.value })}</label>
            <input id="temperature" type="range" min="0" max="2" step="0.05" value={temperature.value} onInput={(event) => (temperature.value = Number(event.currentTarget.value))} />
          </div>
          <div class="field">
            <label for="longest">{t("play.longest")}</label>
            <input id="longest" type="number" min="1" max="8192" value={longest.value} onInput={(event) => (longest.value = Number(event.currentTarget.value) || 1)} />
          </div>
        </div>
      </details>
      <div class="grid">
        {[first, second].filter(Boolean).map((id, index) => {
          const job = jobs.find((one) => one.id === id || one.name === id);
          return job ? <Conversation key={`${id}${index}`} job={job} sent={sent} settings={settings} /> : null;
        })}
      </div>
      <form
        class="card row"
        onSubmit={(event) => {
          event.preventDefault();
          send();
        }}
      >
        <textarea
          class="grow"
          rows={2}
          aria-label={t("play.say")}
          placeholder={t("play.say")}
          value={draft.value}
          onInput={(event) => (draft.value = event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
              event.preventDefault();
              send();
            }
          }}
        />
        <button type="submit" class="button primary">
          {t("play.send")}
        </button>
      </form>
    </>
  );
}

interface Settings {
  system: Signal<string>;
  temperature: Signal<number>;
  longest: Signal<number>;
}

function Conversation({ job, sent, settings }: { job: Job; sent: Signal<{ text: string; id: number } | null>; settings: Settings }) {
  const said = useSignal<Message[]>([]);
  const note = useSignal("");
  const busy = useSignal(false);
  const done = useRef(sent.peek()?.id ?? 0);
  const stop = useRef<AbortController | null>(null);
  const current = sent.value;
  if (current && current.id !== done.current) {
    done.current = current.id;
    queueMicrotask(() => void answer(current.text));
  }
  const answer = async (text: string) => {
    const before: Message[] = [...said.value, { role: "user", content: text }];
    said.value = [...before, { role: "assistant", content: "" }];
    busy.value = true;
    note.value = "";
    const begun = performance.now();
    let tokens = 0;
    stop.current = new AbortController();
    try {
      const system: Message[] = settings.system.value ? [{ role: "system", content: settings.system.value }] : [];
      for await (const piece of stream(job.id, { messages: [...system, ...before], temperature: settings.temperature.value, max_tokens: settings.longest.value }, stop.current.signal)) {
        tokens += 1;
        const last = said.value.at(-1)!;
        said.value = [...said.value.slice(0, -1), { ...last, content: last.content + piece }];
      }
      note.value = t("play.speed", { pieces: tokens, speed: number(tokens / ((performance.now() - begun) / 1000)) });
    } catch (failure) {
      if (!stop.current.signal.aborted) note.value = (failure as Error).message;
    } finally {
      busy.value = false;
    }
  };
  return (
    <section class="card" aria-label={job.name}>
      <div class="card-head">
        <h2>{job.name}</h2>
        {busy.value ? (
          <button type="button" class="button small" onClick={() => stop.current?.abort()}>
            {t("jobs.stop")}
          </button>
        ) : (
          <button type="button" class="button small" onClick={() => (said.value = [])}>
            {t("play.clear")}
          </button>
        )}
      </div>
      <div class="chat" aria-live="polite">
        {said.value.map((message, index) => (
          <div key={index} class={`said ${message.role}`}>
            {message.content || "…"}
          </div>
        ))}
      </div>
      <p class="muted small" role="status">
        {note.value}
      </p>
    </section>
  );
}

/** The pieces of a streamed answer. Throws with what the model server said. */
async function* stream(job: string, body: object, signal: AbortSignal): AsyncGenerator<string> {
  const response = await fetch(`/api/v1/jobs/${job}/proxy/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Requested-With": "navarch" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok || !response.body) {
    const said = (await response.json().catch(() => ({}))) as { error?: { message?: string }; detail?: string };
    throw new Error(said.error?.message ?? said.detail ?? `HTTP ${response.status}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const data = line.startsWith("data: ") ? line.slice(6) : "";
      if (!data || data === "[DONE]") continue;
      const piece = (JSON.parse(data) as { choices?: { delta?: { content?: string } }[] }).choices?.[0]?.delta?.content;
      if (piece) yield piece;
    }
  }
}
