// Line icons of the navigation.
const PATHS: Record<string, string> = {
  overview: "M3 12l9-8 9 8M5 10v10h5v-6h4v6h5V10",
  jobs: "M4 6h16M4 12h16M4 18h10",
  compare: "M3 17l5-6 4 4 8-10M3 21h18",
  submit: "M12 5v14M5 12h14",
  workspaces: "M3 5h18v12H3zM8 21h8M12 17v4",
  images: "M12 3l9 5-9 5-9-5zM3 13l9 5 9-5",
  artifacts: "M4 7l8-4 8 4v10l-8 4-8-4zM4 7l8 4 8-4M12 11v10",
  playground: "M4 5h16v11H9l-5 4z",
  hosts: "M4 4h16v6H4zM4 14h16v6H4zM8 7h.01M8 17h.01",
  people: "M9 11a4 4 0 100-8 4 4 0 000 8zM2 21c0-4 3-6 7-6s7 2 7 6M17 4a4 4 0 010 7M19 15c2 1 3 3 3 6",
  events: "M12 7v5l3 3M21 12a9 9 0 11-18 0 9 9 0 0118 0z",
  menu: "M4 6h16M4 12h16M4 18h16",
};

export function Icon({ name }: { name: string }) {
  return (
    <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">
      <path d={PATHS[name] ?? ""} />
    </svg>
  );
}
