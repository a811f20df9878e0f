// What is dropped on the page: files, or an image of the gallery.

import { url } from "../api.js";

/** Whether what is dragged can be taken. While it is dragged, only its types are known. */
export function canTake({ dataTransfer }) {
  const types = [...(dataTransfer?.types ?? [])];
  return types.includes("Files") || types.includes("text/uri-list");
}

/** {files, stored: the name of an image of this server, or null}. Must be called while the event is handled. */
export function droppedIn({ dataTransfer }) {
  return { files: [...(dataTransfer?.files ?? [])], stored: storedName(dataTransfer?.getData("text/uri-list") ?? "") };
}

function storedName(text) {
  const [address] = text.trim().split(/[?#\s]/);
  const match = /\/api\/images\/(?:cache\/)?([\w.-]+)(?:\/thumbnail)?$/.exec(address);
  return match && address.startsWith(url("")) ? match[1] : null;
}
