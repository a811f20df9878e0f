// Icons of what is loaded later. A module that is loaded then and shows one of them imports this file.

import { PATHS } from "./icons.js";

Object.assign(PATHS, {
  add: "M12 5v14M5 12h14",
  arrowLeft: "M19 12H5M11 6l-6 6 6 6",
  arrowRight: "M5 12h14M13 6l6 6-6 6",
  background: "M3 3h5M3 3v5M21 3h-5M21 3v5M3 21h5M3 21v-5M21 21h-5M21 21v-5M12 7.5a3 3 0 1 1 0 6 3 3 0 0 1 0-6M7 18c1-2.5 9-2.5 10 0",
  chat: "M5.5 5h13A1.5 1.5 0 0 1 20 6.500v8a1.5 1.5 0 0 1-1.5 1.500H10l-4.5 4v-4A1.5 1.5 0 0 1 4 14.500v-8A1.5 1.5 0 0 1 5.5 5zM8 9h8M8 12h5",
  check: "M5 12.5 10 17.5 19 7",
  compare: "M12 3v18M5 6h4M5 6v12h4M19 6h-4M19 6v12h-4",
  copy: "M9 9h10.5v10.5H9zM15 9V4.5H4.5V15H9",
  delete: "M4 7h16M9.5 7V4.5h5V7M6 7l1 13h10l1-13M10 11v5.5M14 11v5.5",
  download: "M12 4v11M7.5 10.5 12 15l4.5-4.5M4.5 19.5h15",
  external: "M13.5 4.5h6v6M19.5 4.5 11 13M17 13.5v6H4.5V7h6",
  fullscreen: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  heart: "M12 20S3.5 15 3.5 9A4.5 4.5 0 0 1 12 7a4.5 4.5 0 0 1 8.5 2c0 6-8.5 11-8.5 11z",
  minus: "M5 12h14",
  pin: "M9 4h6l-.5 6 3 3v1.5h-11V13l3-3zM12 14.5V20",
  search: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13M15.5 15.5 20.5 20.5",
  upscale: "M4 14h6v6H4zM13.5 4H20v6.5M20 4l-8 8",
  vary: "M5 5h9v9H5zM10 17.5V19h9v-9h-1.5",
});
