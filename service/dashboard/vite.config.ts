/// <reference types="vitest/config" />
import { defineConfig } from "vite";

// The API that `npm run dev` talks to.
const api = "http://127.0.0.1:8470";

export default defineConfig({
  base: "/",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "dist",
    target: "es2022",
    modulePreload: { polyfill: false }, // the content security policy has no room for inline scripts
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": { target: api, ws: true } } },
  test: { include: ["test/**/*.test.ts"], environment: "node" },
});
