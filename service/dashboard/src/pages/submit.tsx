// A new job: a form for each type, the same as YAML, and beside them where it would run, or why it can't.
import { useSignal } from "@preact/signals";
import { useLocation } from "preact-iso";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { parse, stringify } from "yaml";
import { api, ApiError, type Job, need, type Plan } from "../api/client";
import { useData } from "../api/use";
import { t, tHelp, tOr } from "../i18n";
import { type FieldSpec, fields, read, type Schema, show } from "../lib/schema";
import { fromYaml, put, type Spec, toYaml } from "../lib/spec";
import { attempt, Field, Loading } from "../ui/parts";
import { useQuery } from "../ui/query";
import { useTitle } from "../ui/title";

const TYPES = ["command", "pt", "sft", "rm", "dpo", "ppo", "grpo", "serve"] as const;
const START: Record<string, Spec> = {
  command: { type: "command", image: "cpu", command: "nvidia-smi" },
};

export function Submit() {
  useTitle(t("nav.submit"));
  const query = useQuery();
  const { route } = useLocation();
  const from = query.get("from");
  const spec = useSignal<Spec>({ type: "sft", image: "cpu" });
  const yaml = query.get("view") === "yaml";
  const text = useSignal("");
  const textError = useSignal("");
  const type = String(spec.value["type"] ?? "command");
  useEffect(() => {
    if (from) void attempt(() => need(api.GET("/api/v1/jobs/{ref}", { params: { path: { ref: from } } }))).then((job) => job && start(job.spec));
    else if (query.get("type")) choose(query.get("type"));
  }, [from]);
  const start = (value: Spec) => {
    const { after: _, ...rest } = value;
    spec.value = rest;
    text.value = toYaml(rest);
  };
  const choose = (kind: string) => start({ ...(START[kind] ?? { image: spec.value["image"] ?? "cpu" }), name: spec.value["name"], type: kind });
  const schema = useData((signal) => need(api.GET("/api/v1/specs/{type}", { params: { path: { type: type as (typeof TYPES)[number] } }, signal })), [type]);
  const all = useMemo(() => (schema.data.value ? fields(schema.data.value as Schema) : []), [schema.data.value]);
  const plan = usePlan(spec.value, textError.value === "");
  const edit = (value: string) => {
    text.value = value;
    try {
      spec.value = fromYaml(value);
      textError.value = "";
    } catch (failure) {
      const said = (failure as Error).message;
      textError.value = said === "mapping" ? t("submit.mapping") : said;
    }
  };
  const submit = async () => {
    const key = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
    const job = (await attempt(() =>
      need(api.POST("/api/v1/jobs", { body: spec.value as never, params: { header: { "idempotency-key": key } } })),
    )) as Job | undefined;
    if (job) route(`/jobs/${job.id}`);
  };
  const errors = plan.errors.value;
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.submit")}
        </h1>
        <button type="button" class="button primary" disabled={plan.busy.value || textError.value !== "" || plan.refused.value !== null} onClick={() => void submit()}>
          {t("submit.submit")}
        </button>
      </header>
      <div class="two">
        <div class="card">
          <div class="toolbar">
            <div class="chips" role="group" aria-label={t("jobs.type")}>
              {TYPES.map((kind) => (
                <button key={kind} type="button" class="chip" aria-pressed={type === kind} title={t(`type.${kind}`)} onClick={() => choose(kind)}>
                  {kind}
                </button>
              ))}
            </div>
            <span class="grow" />
            <div class="chips">
              <button type="button" class="chip" aria-pressed={!yaml} onClick={() => query.set({ view: null })}>
                {t("submit.form")}
              </button>
              <button
                type="button"
                class="chip"
                aria-pressed={yaml}
                onClick={() => {
                  text.value = toYaml(spec.value);
                  query.set({ view: "yaml" });
                }}
              >
                YAML
              </button>
            </div>
          </div>
          <p class="muted">{tOr(`type.${type}`, "")}</p>
          {yaml ? (
            <Field id="yaml" label="YAML" error={textError.value || errors.map((error) => error.message).join("; ") || undefined}>
              <textarea id="yaml" rows={26} spellcheck={false} value={text.value} aria-invalid={textError.value !== ""} onInput={(event) => edit(event.currentTarget.value)} />
            </Field>
          ) : all.length ? (
            <Fields all={all} spec={spec.value} errors={errors} change={(next) => (spec.value = next)} />
          ) : (
            <Loading />
          )}
        </div>
        <aside class="card sticky" aria-live="polite">
          <h2>{t("submit.plan")}</h2>
          <PlanView plan={plan.plan.value} refused={plan.refused.value} busy={plan.busy.value} />
        </aside>
      </div>
    </>
  );
}

interface FieldError {
  path: string;
  message: string;
}

function usePlan(spec: Spec, ready: boolean) {
  const plan = useSignal<Plan | null>(null);
  const refused = useSignal<ApiError | null>(null);
  const errors = useSignal<FieldError[]>([]);
  const busy = useSignal(true);
  const turn = useRef(0);
  useEffect(() => {
    if (!ready) return;
    busy.value = true;
    const mine = ++turn.current;
    const timer = setTimeout(async () => {
      try {
        const got = (await need(api.POST("/api/v1/jobs", { body: spec as never, params: { query: { dry_run: true } } }))) as unknown as Plan;
        if (mine !== turn.current) return;
        plan.value = got;
        refused.value = null;
        errors.value = [];
      } catch (failure) {
        if (mine !== turn.current) return;
        plan.value = null;
        if (failure instanceof ApiError) {
          refused.value = failure;
          errors.value = ((failure.problem as { problems?: FieldError[] }).problems ?? []).map((error) => ({ path: error.path, message: error.message }));
        }
      }
      busy.value = false;
    }, 450);
    return () => clearTimeout(timer);
  }, [JSON.stringify(spec), ready]);
  return { plan, refused, errors, busy };
}

function PlanView({ plan, refused, busy }: { plan: Plan | null; refused: ApiError | null; busy: boolean }) {
  if (refused)
    return (
      <div class="banner bad">
        <span class="grow wrap">
          {refused.message} {refused.hint ?? ""}
        </span>
      </div>
    );
  if (!plan) return <p class="muted">{busy ? t("common.loading") : ""}</p>;
  return (
    <div class="stack">
      {plan.placeable && !plan.problems?.length ? <p>{t("submit.startsNow")}</p> : null}
      {plan.why ? (
        <div class="banner">
          <span class="grow wrap">{t("submit.waits", { why: plan.why })}</span>
        </div>
      ) : null}
      {plan.problems?.map((problem) => (
        <div key={problem.detail} class="banner bad">
          <span class="grow wrap">
            {problem.detail} {problem.hint ?? ""}
          </span>
        </div>
      ))}
      {plan.notes?.map((note) => (
        <p key={note} class="muted">
          {note}
        </p>
      ))}
      {plan.replicas?.map((replica) => (
        <dl key={replica.node_rank} class="facts">
          <dt>{t("log.rankNumber", { number: replica.node_rank })}</dt>
          <dd>
            {replica.host} {replica.gpus?.length ? `· ${replica.gpus.length} GPU` : ""}
          </dd>
          <dt>{t("container.image")}</dt>
          <dd>{replica.image}</dd>
          <dt>{t("container.command")}</dt>
          <dd class="mono wrap">{replica.command.join(" ")}</dd>
          {replica.mounts?.length ? (
            <>
              <dt>{t("container.mounts")}</dt>
              <dd class="mono wrap">{replica.mounts.join("\n")}</dd>
            </>
          ) : null}
        </dl>
      ))}
    </div>
  );
}

interface FieldsProps {
  all: readonly FieldSpec[];
  spec: Spec;
  errors: readonly FieldError[];
  change: (spec: Spec) => void;
}

function Fields({ all, spec, errors, change }: FieldsProps) {
  const plain = all.filter((field) => field.kind !== "section" && !field.advanced);
  const advanced = all.filter((field) => field.kind !== "section" && field.advanced);
  const sections = all.filter((field) => field.kind === "section");
  const draw = (list: readonly FieldSpec[]) => (
    <div class="fields">
      {list.map((field) => (
        <Input key={field.path} field={field} spec={spec} error={errors.find((error) => at(error.path, field.path))?.message} change={change} />
      ))}
    </div>
  );
  return (
    <div class="stack">
      {draw(plain)}
      {sections.map((section) => (
        <details key={section.path} open={errors.some((error) => at(error.path, section.path)) || section.required || undefined}>
          <summary>
            {section.name} <span class="muted small">{tHelp(section.help)}</span>
          </summary>
          <Fields all={section.fields} spec={spec} errors={errors} change={change} />
        </details>
      ))}
      {advanced.length ? (
        <details>
          <summary>{t("submit.advanced")}</summary>
          {draw(advanced)}
        </details>
      ) : null}
    </div>
  );
}

function at(error: string, path: string): boolean {
  return error === path || error.startsWith(`${path}.`) || error.startsWith(`${path}[`);
}

function Input({ field, spec, error, change }: { field: FieldSpec; spec: Spec; error: string | undefined; change: (spec: Spec) => void }) {
  const id = `field-${field.path}`;
  const wrong = useSignal("");
  const value = show(field, spec, (inner) => stringify(inner));
  const typed = useSignal<string | null>(null);
  const set = (text: string) => {
    typed.value = text;
    try {
      change(put(spec, field.path, read(field, text, (inner) => parse(inner) as unknown)));
      wrong.value = "";
    } catch (failure) {
      wrong.value = (failure as Error).message;
    }
  };
  const shown = typed.value ?? value;
  const invalid = Boolean(error) || wrong.value !== "";
  const common = { id, "aria-invalid": invalid, "aria-required": field.required };
  const help = [tHelp(field.help), field.unit ? t("submit.unit", { unit: tHelp(field.unit) }) : ""].filter(Boolean).join(" ");
  return (
    <Field id={id} label={field.name} help={help || undefined} error={wrong.value || error} wide={["lines", "pairs", "yaml"].includes(field.kind) || field.name === "command"}>
      {field.kind === "choice" ? (
        <select {...common} value={value} onChange={(event) => set(event.currentTarget.value)}>
          <option value="">{field.fallback ? t("submit.default", { value: field.fallback }) : "–"}</option>
          {field.choices.map((choice) => (
            <option key={choice} value={choice}>
              {choice}
            </option>
          ))}
        </select>
      ) : field.kind === "boolean" ? (
        <select {...common} value={value} onChange={(event) => set(event.currentTarget.value)}>
          <option value="">{field.fallback ? t("submit.default", { value: field.fallback }) : "–"}</option>
          <option value="true">{t("common.yes")}</option>
          <option value="false">{t("common.no")}</option>
        </select>
      ) : ["lines", "pairs", "yaml"].includes(field.kind) || field.name === "command" ? (
        <textarea
          {...common}
          rows={field.kind === "yaml" ? 4 : 2}
          spellcheck={false}
          placeholder={field.kind === "pairs" ? "KEY=VALUE" : field.fallback}
          value={shown}
          onInput={(event) => set(event.currentTarget.value)}
          onBlur={() => (typed.value = null)}
        />
      ) : (
        <input
          {...common}
          type="text"
          inputMode={field.kind === "number" ? "decimal" : "text"}
          spellcheck={false}
          placeholder={field.fallback}
          value={shown}
          onInput={(event) => set(event.currentTarget.value)}
          onBlur={() => (typed.value = null)}
        />
      )}
    </Field>
  );
}
