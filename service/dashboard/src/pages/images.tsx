// Images: what can be run, what is being built with its live log, and how to build another.
import { useSignal } from "@preact/signals";
import { useRoute } from "preact-iso";
import { useEffect, useRef } from "preact/hooks";
import { api, need, type Schemas } from "../api/client";
import { watch } from "../api/live";
import { useData } from "../api/use";
import { t } from "../i18n";
import { bytes, shortDigest } from "../lib/format";
import { Ago, attempt, Badge, Empty, Failure, Field, Loading, Span, sure } from "../ui/parts";
import { useTitle } from "../ui/title";

export function Images() {
  useTitle(t("nav.images"));
  const images = useData((signal) => need(api.GET("/api/v1/images", { signal })), [], ["builds"], 2000);
  const builds = useData((signal) => need(api.GET("/api/v1/images/builds", { params: { query: { limit: 20 } }, signal })), [], ["builds"], 1500);
  const recipes = useData((signal) => need(api.GET("/api/v1/recipes", { signal })), []);
  const recipe = useSignal("cpu");
  const base = useSignal("");
  const index = useSignal("");
  const target = useSignal("training");
  const build = async () => {
    await attempt(
      () => need(api.POST("/api/v1/images/builds", { body: { recipe: recipe.value, base: base.value || null, index_url: index.value || null, target: target.value } as never })),
      t("images.asked"),
    );
    builds.reload();
  };
  const remove = async (id: string, name: string) => {
    if (!(await sure(t("images.removeTitle", { name }), t("images.removeText"), t("common.delete")))) return;
    await attempt(() => need(api.DELETE("/api/v1/images/{ref}", { params: { path: { ref: id } } })), t("images.removed"));
    images.reload();
  };
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.images")}
        </h1>
      </header>
      <div class="stack">
        {images.error.value ? <Failure error={images.error.value} /> : null}
        {images.data.value === undefined ? (
          <Loading />
        ) : images.data.value.items.length === 0 ? (
          <div class="card">
            <Empty title={t("images.none")} command="navarch image build cpu" />
          </div>
        ) : (
          <div class="table-box">
            <table>
              <thead>
                <tr>
                  <th>{t("images.tags")}</th>
                  <th class="optional">{t("images.recipe")}</th>
                  <th class="tight num">{t("images.size")}</th>
                  <th class="tight num optional">{t("jobs.age")}</th>
                  <th class="optional">{t("images.digest")}</th>
                  <th class="tight">
                    <span class="visually-hidden">{t("common.actions")}</span>
                  </th>
                </tr>
              </thead>
              <tbody>
                {images.data.value.items.map((image) => (
                  <tr key={image.id}>
                    <td class="wrap">{image.tags.join(", ") || "–"}</td>
                    <td class="optional">{image.recipe ?? "–"}</td>
                    <td class="num nowrap">{bytes(image.size)}</td>
                    <td class="num optional">
                      <Ago at={image.created_at} />
                    </td>
                    <td class="mono optional">{shortDigest(image.id)}</td>
                    <td class="tight">
                      <button type="button" class="button quiet small" onClick={() => void remove(image.id, image.tags[0] ?? shortDigest(image.id))}>
                        {t("common.delete")}
                      </button>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
        <div class="grid">
          <section class="card">
            <h2>{t("images.build")}</h2>
            <form
              class="stack"
              onSubmit={(event) => {
                event.preventDefault();
                void build();
              }}
            >
              <Field id="recipe" label={t("images.recipe")} help={recipes.data.value?.items.find((one) => one.name === recipe.value)?.description}>
                <select id="recipe" value={recipe.value} onChange={(event) => (recipe.value = event.currentTarget.value)}>
                  {(recipes.data.value?.items ?? []).map((one) => (
                    <option key={one.name} value={one.name}>
                      {one.name}
                    </option>
                  ))}
                </select>
              </Field>
              <Field id="base" label={t("images.base")} help={t("images.baseHelp")}>
                <input id="base" type="text" value={base.value} placeholder={recipes.data.value?.items.find((one) => one.name === recipe.value)?.base ?? ""} onInput={(event) => (base.value = event.currentTarget.value)} />
              </Field>
              <Field id="target" label={t("images.target")} help={t("images.targetHelp")}>
                <select id="target" value={target.value} onChange={(event) => (target.value = event.currentTarget.value)}>
                  <option value="training">{t("images.target.training")}</option>
                  <option value="system">{t("images.target.system")}</option>
                </select>
              </Field>
              <Field id="index" label={t("images.index")} help={t("images.indexHelp")}>
                <input id="index" type="text" value={index.value} onInput={(event) => (index.value = event.currentTarget.value)} />
              </Field>
              <div>
                <button type="submit" class="button primary">
                  {t("images.build")}
                </button>
              </div>
            </form>
          </section>
          <section class="card">
            <h2>{t("images.builds")}</h2>
            {builds.data.value?.items.length ? (
              <ul class="stack">
                {builds.data.value.items.map((one) => (
                  <li key={one.id}>
                    <div class="row">
                      <a href={`/images/builds/${one.id}`}>{one.tag}</a>
                      <Badge state={one.state} />
                      <span class="muted small">
                        <Ago at={one.created_at} />
                      </span>
                    </div>
                    <div class="muted small wrap">{one.message}</div>
                  </li>
                ))}
              </ul>
            ) : (
              <p class="muted">{t("images.noBuilds")}</p>
            )}
          </section>
        </div>
      </div>
    </>
  );
}

/** One build with its log as it grows. */
export function BuildPage() {
  const { params } = useRoute();
  const id = params["id"] ?? "";
  useTitle(t("images.buildOf", { id }));
  const build = useData((signal) => need(api.GET("/api/v1/images/builds/{build_id}", { params: { path: { build_id: id } }, signal })), [id], [`build/${id}`], 700);
  const lines = useSignal<string[]>([]);
  const end = useRef<HTMLDivElement>(null);
  useEffect(() => {
    let cursor: string | undefined;
    let busy = false;
    let ended = false;
    const look = async () => {
      if (busy) return;
      busy = true;
      try {
        for (;;) {
          const page = (await need(api.GET("/api/v1/images/builds/{build_id}/logs", { params: { path: { build_id: id }, query: { cursor, limit: 1000 } } }))) as Schemas["LogPage"];
          if (ended) return;
          cursor = page.next_cursor;
          if (page.items.length === 0) break;
          lines.value = [...lines.value, ...page.items.map((line) => line.line)].slice(-5000);
          end.current?.scrollIntoView({ block: "end" });
        }
      } catch {
        // the banner says that nobody answers
      } finally {
        busy = false;
      }
    };
    void look();
    const unwatch = watch([`build/${id}`], () => void look());
    return () => {
      ended = true;
      unwatch();
    };
  }, [id]);
  if (build.data.value === undefined) return build.error.value ? <Failure error={build.error.value} /> : <Loading />;
  const row = build.data.value;
  const cancel = () => attempt(() => need(api.POST("/api/v1/images/builds/{build_id}/cancel", { params: { path: { build_id: id } } })), t("images.cancelled"));
  return (
    <>
      <header class="page-head">
        <div class="grow">
          <div class="row">
            <h1 tabIndex={-1}>{row.tag}</h1>
            <Badge state={row.state} />
          </div>
          <p class="muted wrap">
            {row.recipe} · <Span from={row.started_at} to={row.finished_at} /> · {row.message}
          </p>
        </div>
        {row.finished_at ? null : (
          <button type="button" class="button danger" onClick={() => void cancel()}>
            {t("common.cancel")}
          </button>
        )}
      </header>
      <div class="card">
        <pre class="code wrapped" tabIndex={0} aria-label={t("log.title")}>
          {lines.value.join("\n")}
          <div ref={end} />
        </pre>
      </div>
    </>
  );
}
