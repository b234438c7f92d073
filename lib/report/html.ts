import { visible } from './terminal.js';

/** Text for HTML and SVG, with what could steer a terminal or reorder a line taken out as well. */
export function escapeHtml(text: string): string {
  return visible(text)
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
