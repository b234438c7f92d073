/** Every start that comes with the library, by name. */

export { adamss } from './methods/adamss.js';
export { cloq } from './methods/cloq.js';
export { corda } from './methods/corda.js';
export { eva } from './methods/eva.js';
export { federa } from './methods/federa.js';
export { goat } from './methods/goat.js';
export { gora } from './methods/gora.js';
export { inflora } from './methods/inflora.js';
export { kasa } from './methods/kasa.js';
export { loftq } from './methods/loftq.js';
export { loraGa } from './methods/lora-ga.js';
export { loraOne } from './methods/lora-one.js';
export { loraSb } from './methods/lora-sb.js';
export { loraXs } from './methods/lora-xs.js';
export { mica } from './methods/mica.js';
export { milora } from './methods/milora.js';
export { olora } from './methods/olora.js';
export { osf } from './methods/osf.js';
export { pafi } from './methods/pafi.js';
export { pissa } from './methods/pissa.js';
export { qera } from './methods/qera.js';
export { s2ft } from './methods/s2ft.js';
export { slora } from './methods/slora.js';
