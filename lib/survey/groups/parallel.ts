import type { SurveyGroup } from '../definition/definition.js';

export const parallel: SurveyGroup = {
  chapter: 'efficiency',
  title: 'Many adapters in parallel',
  rows: [
    {
      method: 'aspen',
      title: 'ASPEN (mLoRA)',
      year: '2023',
      arxiv: ['2312.02515'],
      primitives: 'P7',
      use: '`GroupedLora`, forward and backward',
    },
    {
      method: 'punica',
      title: 'Punica',
      year: '2023',
      arxiv: ['2310.18547'],
      primitives: 'P7',
      use: '`GroupedLora`',
    },
    {
      method: 's-lora',
      title: 'S-LoRA',
      year: '2023',
      arxiv: ['2311.03285'],
      primitives: 'P7',
      use: '`GroupedLora`: adapters come and go without copies, ragged ranks',
    },
    {
      method: 'caraserve',
      title: 'CaraServe',
      year: '2024',
      arxiv: ['2401.11240'],
      primitives: 'P7',
      use: '`GroupedLora` on the CPU and the GPU',
    },
  ],
};
