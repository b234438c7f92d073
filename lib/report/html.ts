import { visible } from './terminal.js';

/** Escapes text for HTML and SVG, and removes what could steer a terminal or reorder a line. */
export function escapeHtml(text: string): string {
  return visible(text)
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
