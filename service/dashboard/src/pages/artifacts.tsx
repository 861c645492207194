// Models and data by name and version: where each came from, what was made of it, and what is in it.
import { useRoute } from "preact-iso";
import { api, type Artifact, need } from "../api/client";
import { useData } from "../api/use";
import { t } from "../i18n";
import { bytes, shortDigest } from "../lib/format";
import { LineageGraph } from "../ui/lineage";
import { Ago, Code, Empty, Failure, Loading } from "../ui/parts";
import { Pager } from "../ui/pager";
import { useQuery } from "../ui/query";
import { useTitle } from "../ui/title";

export function Artifacts() {
  useTitle(t("nav.artifacts"));
  const query = useQuery();
  const cursor = query.get("after");
  const page = useData((signal) => need(api.GET("/api/v1/artifacts", { params: { query: { limit: 100, cursor: cursor || undefined } }, signal })), [cursor], ["artifacts", "jobs"], 3000);
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {t("nav.artifacts")}
        </h1>
      </header>
      {page.error.value ? <Failure error={page.error.value} /> : null}
      {page.data.value === undefined ? (
        <Loading />
      ) : page.data.value.items.length === 0 ? (
        <div class="card">
          <Empty title={t("artifacts.none")} command="navarch artifact import /data/models/llama-7b --name llama-7b">
            {t("artifacts.noneText")}
          </Empty>
        </div>
      ) : (
        <div class="table-box">
          <table>
            <thead>
              <tr>
                <th>{t("jobs.name")}</th>
                <th class="tight">{t("artifacts.kind")}</th>
                <th class="tight num">{t("images.size")}</th>
                <th class="optional">{t("artifacts.source")}</th>
                <th class="tight num">{t("jobs.age")}</th>
                <th class="optional">{t("images.digest")}</th>
              </tr>
            </thead>
            <tbody>
              {page.data.value.items.map((one) => (
                <tr key={one.id}>
                  <td class="wrap">
                    <a href={`/artifacts/${one.name}@${one.version}`}>
                      {one.name}@{one.version}
                    </a>
                  </td>
                  <td>{one.kind}</td>
                  <td class="num nowrap">{bytes(one.size)}</td>
                  <td class="optional wrap">
                    <SourceLink artifact={one} />
                  </td>
                  <td class="num">
                    <Ago at={one.created_at} />
                  </td>
                  <td class="mono optional">{shortDigest(one.digest)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Pager query={query} next={page.data.value?.next_cursor} />
    </>
  );
}

function SourceLink({ artifact }: { artifact: Artifact }) {
  const made = artifact.source?.match(/^job:(.+)$/)?.[1];
  return made ? <a href={`/jobs/${artifact.job ?? made}`}>{made}</a> : <>{artifact.source ?? "–"}</>;
}

/** One version: facts, what it was made from and what was made of it, its first rows when it is data. */
export function ArtifactPage() {
  const { params } = useRoute();
  const ref = decodeURIComponent(params["ref"] ?? "");
  useTitle(ref);
  const loaded = useData((signal) => need(api.GET("/api/v1/artifacts/{ref}", { params: { path: { ref } }, signal })), [ref], ["artifacts"]);
  const line = useData((signal) => need(api.GET("/api/v1/artifacts/{ref}/lineage", { params: { path: { ref } }, signal })), [ref]);
  const preview = useData((signal) => need(api.GET("/api/v1/artifacts/{ref}/preview", { params: { path: { ref } }, signal })), [ref]);
  const artifact = loaded.data.value;
  if (!artifact) return loaded.error.value ? <Failure error={loaded.error.value} /> : <Loading />;
  return (
    <>
      <header class="page-head">
        <h1 tabIndex={-1} class="grow">
          {artifact.name}@{artifact.version}
        </h1>
        {artifact.kind === "model" ? (
          <a class="button" href={`/submit?type=serve`}>
            {t("artifacts.serve")}
          </a>
        ) : null}
      </header>
      <div class="stack">
        <section class="card">
          <dl class="facts">
            <dt>{t("artifacts.kind")}</dt>
            <dd>{artifact.kind}</dd>
            <dt>{t("artifacts.path")}</dt>
            <dd class="mono">{artifact.path}</dd>
            <dt>{t("images.size")}</dt>
            <dd>{bytes(artifact.size)}</dd>
            <dt>{t("images.digest")}</dt>
            <dd class="mono">{artifact.digest ?? "–"}</dd>
            <dt>{t("artifacts.source")}</dt>
            <dd>
              <SourceLink artifact={artifact} />
            </dd>
          </dl>
        </section>
        <section class="card">
          <h2>{t("artifacts.lineage")}</h2>
          {line.data.value ? (
            line.data.value.items.length > 1 ? (
              <LineageGraph items={line.data.value.items} here={`${artifact.name}@${artifact.version}`} />
            ) : (
              <p class="muted">{t("artifacts.alone")}</p>
            )
          ) : null}
        </section>
        {preview.data.value?.rows?.length ? (
          <section class="card">
            <h2>{t("artifacts.preview")}</h2>
            <p class="muted">{preview.data.value.file}</p>
            {(preview.data.value.rows ?? []).map((row, index) => (
              <Code key={index} text={row} wrapped label={t("artifacts.row", { number: index + 1 })} />
            ))}
          </section>
        ) : null}
      </div>
    </>
  );
}
