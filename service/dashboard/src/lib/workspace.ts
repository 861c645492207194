// A workspace's document from what was typed into the form. Pure functions.
export interface WorkspaceForm {
  name: string;
  image: string;
  gpus: string;
  ports: string;
  mounts: string;
  shm: string;
  max: string;
}

/** The document; what was left empty isn't in it. */
export function workspaceSpec(form: WorkspaceForm): Record<string, unknown> {
  const ports = lines(form.ports).map(number);
  const mounts = lines(form.mounts);
  const [gpus, shm] = [form.gpus.trim(), form.shm.trim()];
  const resources = { ...(gpus ? { gpus: number(gpus) } : {}), ...(shm && shm !== "host" ? { shm } : {}) };
  return {
    type: "workspace",
    name: form.name.trim(),
    ...(form.image.trim() ? { image: form.image.trim() } : {}),
    ...(Object.keys(resources).length ? { resources } : {}),
    ...(shm === "host" ? { ipc: "host" } : {}),
    ...(ports.length ? { ports } : {}),
    ...(mounts.length ? { mounts } : {}),
    ...(form.max.trim() ? { max: form.max.trim() } : {}),
  };
}

/** What stands on the lines of a text; commas separate, too. */
export function lines(text: string): string[] {
  return text
    .split(/[\n,]/)
    .map((line) => line.trim())
    .filter(Boolean);
}

function number(text: string): number | string {
  return /^\d{1,9}$/.test(text) ? Number(text) : text;
}
