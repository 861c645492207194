"""Names that other tools have for what is configured here: for whoever comes from them, and mistypes nothing."""

from __future__ import annotations

FOREIGN: dict[str, str] = {
    # transformers' Trainer and TRL
    "model_name_or_path": "model", "model_id": "model", "base_model": "model", "pretrained_model_name_or_path": "model",
    "output_dir": "run_dir", "resume_from_checkpoint": "resume",
    "learning_rate": "train.lr", "lr_scheduler_type": "train.lr_schedule", "lr_scheduler": "train.lr_schedule",
    "num_train_epochs": "train.epochs", "num_epochs": "train.epochs", "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup", "per_device_train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size", "gradient_accumulation_steps": "train.accumulate",
    "max_seq_length": "train.max_length", "max_seq_len": "train.max_length", "sequence_len": "train.max_length",
    "cutoff_len": "train.max_length", "model_max_length": "train.max_length", "block_size": "train.max_length",
    "adam_beta1": "train.betas", "adam_beta2": "train.betas", "adam_epsilon": "train.eps",
    "clip_grad_norm": "train.max_grad_norm", "gradient_clipping": "train.max_grad_norm",
    "gradient_checkpointing": "train.activation_checkpointing: full",
    "activation_checkpoint": "train.activation_checkpointing: full",
    "grad_checkpoint": "train.activation_checkpointing: full",
    "torch_compile": "train.compile", "neftune_noise_alpha": "train.neftune", "neat_packing": "train.packing",
    "sample_packing": "train.packing", "bf16": "train.precision: bf16", "fp16": "train.precision: fp16",
    "tf32": "nothing: fast matrix products are always on",
    "stage": "nothing: the command says it (navarch-train sft), or type: sft", "do_train": "nothing: a stage trains",
    "flash_attn": "nothing: fast attention within documents is always on",
    "attn_implementation": "nothing: fast attention within documents is always on",
    "use_liger_kernel": "nothing: blocks and loss are fused anyway", "enable_liger_kernel":
    "nothing: blocks and loss are fused anyway", "plot_loss": "nothing: navarch-train plot RUN_DIR draws curves",
    "load_in_4bit": "nothing: weights are quantized for serving only (navarch-train quantize)",
    "quantization_bit": "nothing: weights are quantized for serving only (navarch-train quantize)",
    "data_seed": "train.seed",
    "logging_steps": "log.every", "report_to": "log.wandb", "wandb_project": "log.wandb",
    "save_steps": "checkpoint.every", "save_total_limit": "checkpoint.keep",
    "load_best_model_at_end": "checkpoint.keep_best", "eval_steps": "eval.every", "evaluation_strategy": "eval.every",
    "eval_strategy": "eval.every",
    # data
    "dataset": "data", "datasets": "data", "dataset_name": "data", "dataset_path": "data", "train_file": "data",
    "dataset_dir": "data (name the files themselves)", "eval_dataset": "data.eval", "val_size": "data.eval_fraction",
    "val_set_size": "data.eval_fraction", "chat_template": "data.template", "default_system": "data.system",
    "system_prompt": "data.system", "mask_history": "data.train_on: last",
    "assistant_only_loss": "data.train_on (answers alone are learned anyway)",
    "completion_only_loss": "data.train_on (answers alone are learned anyway)",
    "train_on_prompt": "data.train_on (prompts are never learned)",
    "train_on_inputs": "data.train_on (prompts are never learned)",
    "preprocessing_num_workers": "data.workers", "dataset_num_proc": "data.workers", "num_proc": "data.workers",
    # adapters
    "finetuning_type": "lora (leave the section out to train all weights)", "adapter": "lora", "use_lora": "lora",
    "use_peft": "lora", "peft_config": "lora", "lora_r": "lora.rank", "lora_rank": "lora.rank", "r": "lora.rank",
    "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout", "lora_target": "lora.targets",
    "target_modules": "lora.targets", "lora_target_modules": "lora.targets",
    # how it is spread
    "deepspeed": "strategy", "fsdp": "strategy", "fsdp_config": "strategy", "plugin": "strategy",
    "ddp_timeout": "strategy.timeout_s", "tensor_parallel_size": "strategy.tp", "pipeline_parallel_size": "strategy.pp",
    # preferences, PPO and GRPO
    "pref_beta": "dpo.beta", "label_smoothing_factor": "dpo.label_smoothing", "ref_model": "reference",
    "reward_model": "reward.model", "reward_model_path": "reward.model", "reward_funcs": "reward.function",
    "kl_coef": "kl.coef", "init_kl_coef": "kl.coef", "kl_coefficient": "kl.coef", "adap_kl_ctrl": "kl.controller",
    "cliprange": "train.clip_range", "eps_clip": "train.clip_range", "cliprange_value": "critic.clip_range",
    "vf_coef": "critic.coef", "ptx_coef": "ptx.coef", "num_ppo_epochs": "train.ppo_epochs",
    "rollout_batch": "train.rollout_batch_size", "num_generations": "train.samples_per_prompt",
    "response_length": "generation.max_new_tokens", "max_completion_length": "generation.max_new_tokens",
    "max_prompt_len": "train.max_prompt_length", "reward_weights": "reward.functions (each with its weight)",
    "epsilon": "grpo.epsilon_low", "num_iterations": "train.ppo_epochs", "beta": "kl.coef",
    "mask_truncated_completions": "grpo.overlong_filtering", "clip_ratio_low": "grpo.epsilon_low",
    "clip_ratio_high": "grpo.epsilon_high", "n_samples_per_prompt": "train.samples_per_prompt",
    # serving
    "tensor_parallel": "nothing: one server uses one GPU", "max_model_len": "max_length", "max_num_seqs": "max_batch",
    "served_model_name": "name", "quantization": "quantize", "api_key": "api_key_env", "lora_modules": "adapter",
}  # fmt: skip
"""Their name → ours, or a sentence."""
