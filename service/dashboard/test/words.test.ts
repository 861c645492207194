import { describe, expect, it } from "vitest";
import { delay } from "../src/api/live";
import { en } from "../src/i18n/en";
import { zh } from "../src/i18n/zh";
import { catalogues, setLang, t } from "../src/i18n";
import { bytes, duration, number, shortDigest } from "../src/lib/format";

describe("the catalogues", () => {
  it("have the same keys", () => expect(Object.keys(zh).sort()).toEqual(Object.keys(en).sort()));
  it("are translated: every Chinese sentence has Chinese in it", () => {
    const bare = (text: string) => text.replace(/\{\w+\}|[\s·:：()]/g, "");
    expect(Object.entries(zh).filter(([, text]) => bare(text) !== "" && !/[\u4e00-\u9fff]/.test(text))).toEqual([]);
  });
  it("name the same values", () => {
    const names = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort();
    for (const key of Object.keys(en) as (keyof typeof en)[]) expect([key, names(catalogues.zh[key])]).toEqual([key, names(en[key])]);
  });
  it("put values in", () => {
    setLang("en");
    expect(t("jobs.step", { step: 3, total: 10 })).toBe("step 3 of 10");
    setLang("zh");
    expect(t("jobs.step", { step: 3, total: 10 })).toBe("第 3 步，共 10 步");
    setLang("en");
  });
});

it.each([
  [0.022549, "0.02255"],
  [6.76e-6, "6.76e-6"],
  [12345, "12,345"],
  [365739.4, "365,700"],
  [Number.NaN, "NaN"],
  [null, "–"],
  [0, "0"],
])("writes %j as %s", (value, text) => expect(number(value)).toBe(text));

it.each([
  [0.4, "0s"],
  [59, "59s"],
  [200, "3m 20s"],
  [7500, "2h 05m"],
  [356400, "4d 3h"],
])("writes %d seconds as %s", (value, text) => expect(duration(value)).toBe(text));

it("writes sizes and digests short", () => {
  expect(bytes(830)).toBe("830 B");
  expect(bytes(1.5 * 1024 ** 3)).toBe("1.5 GiB");
  expect(shortDigest(`sha256:${"0123456789abcdef".repeat(4)}`)).toBe("sha256:0123456789ab");
});

it("waits longer between tries, never longer than 6.25 s", () => {
  for (let attempt = 1; attempt < 40; attempt += 1) expect(delay(attempt)).toBeLessThanOrEqual(6250);
  expect(delay(1)).toBeLessThan(700);
});
