// The REST API, typed by what the control plane says of itself, and the one place where an answer becomes data or an error.
import createClient, { type Middleware } from "openapi-fetch";
import { signal } from "@preact/signals";
import type { components, paths } from "./schema.gen";

export type Schemas = components["schemas"];
export type Job = Schemas["Job"];
export type Attempt = Schemas["Attempt"];
export type Replica = Schemas["Replica"];
export type Host = Schemas["Host"];
export type Gpu = Schemas["Gpu"];
export type Event = Schemas["Event"];
export type Image = Schemas["Image"];
export type Build = Schemas["Build"];
export type Artifact = Schemas["Artifact"];
export type Plan = Schemas["Plan"];
export type LogLine = Schemas["LogLine"];
export type Problem = Schemas["ProblemDocument"];

/** A request that was refused, with what the control plane said about it. */
export class ApiError extends Error {
  readonly status: number;
  readonly problem: Partial<Problem>;
  constructor(status: number, problem: Partial<Problem>) {
    super(problem.detail ?? `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
  }
  get code(): string {
    return this.problem.code ?? "internal";
  }
  get hint(): string | undefined {
    return this.problem.hint ?? undefined;
  }
}

/** True while the control plane wants to know who asks: the page shows the sign-in form. */
export const signedOut = signal(false);
/** When the control plane was last silent; null while it answers. */
export const lostSince = signal<number | null>(null);
/** True when the control plane is of another version than this page. */
export const outdated = signal(false);

let served: string | null = null;

const watch: Middleware = {
  onRequest({ request }) {
    request.headers.set("X-Requested-With", "navarch");
    return request;
  },
  onResponse({ response }) {
    lostSince.value = null;
    const version = response.headers.get("X-Navarch-Version");
    if (version) {
      served ??= version;
      if (version !== served) outdated.value = true;
    }
    if (response.status === 401) signedOut.value = true;
    return undefined;
  },
  onError() {
    lostSince.value ??= Date.now();
    return undefined;
  },
};

export const api = createClient<paths>({ baseUrl: "", credentials: "same-origin" });
api.use(watch);

type Answer<T> = { data?: T; error?: unknown; response: Response };

/** The data of an answer. Throws ApiError when it was refused. */
export async function need<T>(answer: Promise<Answer<T>>): Promise<T> {
  const { data, error, response } = await answer;
  if (!response.ok) throw new ApiError(response.status, isProblem(error) ? error : { detail: String(error ?? response.statusText) });
  return data as T;
}

function isProblem(value: unknown): value is Problem {
  return typeof value === "object" && value !== null && "detail" in value;
}
