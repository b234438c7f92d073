"""Records what Jinja makes of the templates of this folder: python3 record.py > renderings.json

The environment is that of transformers' apply_chat_template: trimmed blocks, and the functions that templates may call. Parts
between generation tags are what the model learns: they are marked while they are rendered.
"""

import json
import pathlib

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

BEGIN, END = "\ue000", "\ue001"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("marked")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def marked(self, caller):
        return f"{BEGIN}{caller()}{END}"


def refuse(message):
    raise TemplateError(message)


def tojson(value, indent=None):
    return json.dumps(value, ensure_ascii=False, indent=indent)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = refuse
environment.globals["strftime_now"] = lambda form: {"%d %b %Y": "26 Jul 2024"}[form]


def render(template, case, count, generate=False):
    messages = case["messages"][:count]
    tools = case.get("tools")
    marked = template.render(
        messages=messages, tools=tools, add_generation_prompt=generate, **TOKENS
    )
    first, *parts = marked.split(BEGIN)
    spans, text = [], first
    for part in parts:
        inner, after = part.split(END)
        spans.append([utf16(text), utf16(text + inner)])
        text += inner + after
    return text, spans


def utf16(text):
    return len(text.encode("utf-16-le")) // 2


def recorded(template, case):
    try:
        text, spans = render(template, case, None)
        turns = []
        for i, message in enumerate(case["messages"]):
            if message["role"] == "assistant":
                part, marks = render(template, case, i + 1)
                asked, _ = render(template, case, i, True)
                turns.append({"asked": asked, "text": part, "span": marks[-1]})
        return {"text": text, "spans": spans, "turns": turns}
    except TemplateError as error:
        return {"error": str(error)}


folder = pathlib.Path(__file__).parent
cases = json.loads((folder / "conversations.json").read_text())
result = {}
for file in sorted(folder.glob("*.jinja")):
    template = environment.from_string(file.read_text())
    result[file.stem] = {case["name"]: recorded(template, case) for case in cases}
print(json.dumps(result, indent=1, ensure_ascii=True))
