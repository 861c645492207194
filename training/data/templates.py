"""Named chat templates, for tokenizers that bring none: Jinja text with the variables that transformers gives.

Each ends the assistant's turn with `eos_token`, and none ends the generation prompt with a space (the first word of the
answer would otherwise be cut into other tokens than in training).
"""

from __future__ import annotations

DEFAULT_TEMPLATE = "human"

_HUMAN = r"""
{%- for message in messages -%}
{%- set content = message['content'] | trim -%}
{%- if message['role'] == 'system' -%}{{ content + '\n\n' }}
{%- elif message['role'] == 'user' -%}{{ 'Human: ' + content + '\n\n' }}
{%- else -%}{{ 'Assistant: ' + content + eos_token }}{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}
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
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\n' }}{%- endif -%}
"""
_CHATML = r"""
{%- for message in messages -%}
{%- set end = eos_token if message['role'] == 'assistant' else '<|im_end|>' -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + end + '\n' }}
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
{{ message['content'] }}{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
"""

TEMPLATES: dict[str, str] = {
    "human": _HUMAN,
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "none": _NONE,
}
