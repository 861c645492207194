"""Named chat templates, for tokenizers that bring none: Jinja text with the variables that transformers gives.

The plain ones end the assistant's turn with `eos_token`, chatml and llama3 with their own token. None ends the
generation prompt with a space (the first word of the answer would otherwise be cut into other tokens than in training).
Where the tokenizer begins texts with a BOS, the codec puts it before them.
"""

from __future__ import annotations

DEFAULT_TEMPLATE = "human"

_NO_TOOLS = r"""{{ raise_exception('it has no place for the turns of ' ~ message['role'] ~ 's') }}"""
_HUMAN = r"""
{%- for message in messages -%}
{%- set content = message['content'] | trim -%}
{%- if message['role'] == 'system' -%}{{ content + '\n\n' }}
{%- elif message['role'] == 'user' -%}{{ 'Human: ' + content + '\n\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'Assistant: ' + content + eos_token }}{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}
{%- else -%}NO_TOOLS
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
_ALPACA = r"""
{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] | trim + '\n\n' }}
{%- else -%}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- set content = message['content'] | trim -%}
{%- if message['role'] == 'user' -%}{{ '### Instruction:\n' + content + '\n\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ '### Response:\n' + content + eos_token }}{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}
{%- elif message['role'] != 'system' -%}NO_TOOLS
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\n' }}{%- endif -%}
"""
_CHATML = r"""
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""
_LLAMA3 = r"""
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}
"""
_NONE = r"""
{%- for message in messages -%}
{%- if message['role'] not in ('system', 'user', 'assistant') -%}NO_TOOLS{%- endif -%}
{{ message['content'] }}{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
"""

TEMPLATES: dict[str, str] = {
    "human": _HUMAN.replace("NO_TOOLS", _NO_TOOLS),
    "alpaca": _ALPACA.replace("NO_TOOLS", _NO_TOOLS),
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "none": _NONE.replace("NO_TOOLS", _NO_TOOLS),
}
