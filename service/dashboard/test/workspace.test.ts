import { expect, test } from "vitest";
import { workspaceSpec } from "../src/lib/workspace";

const EMPTY = { name: "", image: "", gpus: "", ports: "", mounts: "", shm: "", max: "" };

test("what is left empty is left to the control plane", () => {
  expect(workspaceSpec({ ...EMPTY, name: " alice " })).toEqual({ type: "workspace", name: "alice" });
});

test("ports, GPUs and shared memory are written as in a file", () => {
  const spec = workspaceSpec({ ...EMPTY, name: "colossal_env", gpus: "all", ports: "8095:22\n7000, 7010", mounts: "/data/llm:/workspace/LLM\n", shm: "16GB", max: "7d" });
  expect(spec).toEqual({
    type: "workspace",
    name: "colossal_env",
    resources: { gpus: "all", shm: "16GB" },
    ports: ["8095:22", 7000, 7010],
    mounts: ["/data/llm:/workspace/LLM"],
    max: "7d",
  });
});

test("shared memory of the host is ipc, and a number of GPUs a number", () => {
  expect(workspaceSpec({ ...EMPTY, name: "a", gpus: "2", shm: "host" })).toEqual({ type: "workspace", name: "a", resources: { gpus: 2 }, ipc: "host" });
});
