// Artifacts and jobs as a graph from left to right: what was made of what.
import type { Schemas } from "../api/client";
import { t } from "../i18n";

type Item = Schemas["LineageItem"];

const WIDTH = 168;
const HEIGHT = 46;
const GAP_X = 40;
const GAP_Y = 14;
const LETTERS = 21;

interface Place {
  item: Item;
  x: number;
  y: number;
}

/** Each layer is a column; a node stands as near as it can to what it was made of. */
export function places(items: Item[]): Map<string, Place> {
  const found = new Map<string, Place>();
  const free: number[] = [];
  for (const item of items) {
    const above = item.sources.map((source) => found.get(source)?.y ?? 0);
    const wanted = above.length ? Math.min(...above) : 0;
    const y = Math.max(wanted, free[item.depth] ?? 0);
    free[item.depth] = y + HEIGHT + GAP_Y;
    found.set(item.id, { item, x: item.depth * (WIDTH + GAP_X), y });
  }
  return found;
}

export function LineageGraph({ items, here }: { items: Item[]; here: string }) {
  const nodes = places(items);
  const all = [...nodes.values()];
  const width = Math.max(...all.map((node) => node.x)) + WIDTH + 2;
  const height = Math.max(...all.map((node) => node.y)) + HEIGHT + 2;
  return (
    <div class="lineage" tabIndex={0} role="group" aria-label={t("artifacts.lineage")}>
      <svg width={width} height={height} viewBox={`-1 -1 ${width} ${height}`}>
        {all.flatMap((node) => node.item.sources.map((source) => nodes.get(source)).map((from) => from && <path key={`${from.item.id}-${node.item.id}`} d={edge(from, node)} />))}
        {all.map((node) => (
          <a key={node.item.id} href={node.item.kind === "job" ? `/jobs/${node.item.id}` : `/artifacts/${node.item.name}`} class={node.item.kind} aria-current={node.item.name === here ? "true" : undefined}>
            <title>{node.item.name}</title>
            <rect x={node.x} y={node.y} width={WIDTH} height={HEIGHT} rx={node.item.kind === "job" ? HEIGHT / 2 : 6} />
            <text x={node.x + 14} y={node.y + 20}>
              {short(node.item.name)}
            </text>
            <text class="kind" x={node.x + 14} y={node.y + 36}>
              {node.item.type}
            </text>
          </a>
        ))}
      </svg>
    </div>
  );
}

function edge(from: Place, to: Place): string {
  const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
  const middle = (x1 + x2) / 2;
  return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
}

/** The end of a long name tells more: it has the version. */
function short(name: string): string {
  return name.length > LETTERS ? `${name.slice(0, 8)}…${name.slice(8 - LETTERS + 1)}` : name;
}
