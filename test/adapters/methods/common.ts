/** Test settings of several methods. */

export const alpha = { settings: { r: 4, loraAlpha: 6 } };
