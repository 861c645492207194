// What the fields of the form mean, in Chinese, by the English text that the API's schema has.
// tests/unit/test_dashboard_words.py tells when one is missing, or is no longer there.

export const help: Record<string, string> = {
  "What it is called. Empty: its type and a few letters.":
    "任务名称。留空则用类型加几个字母。",
  "An image that is there, or a recipe's.":
    "已有的镜像，或某个配方的镜像。",
  "What to run: words, or a text for the shell.":
    "要运行的命令：单词列表，或交给 shell 的一段文本。",
  "Where the command starts.":
    "命令的起始目录。",
  "How many containers, and what each gets.":
    "启动几个容器，每个容器分到什么资源。",
  "Containers, each on a host of its own.":
    "容器个数，每个在各自的主机上。",
  "GPUs of each container.":
    "每个容器的 GPU 数。",
  "CPUs of each container.":
    "每个容器的 CPU 数。",
  "Memory of each container.":
    "每个容器的内存。",
  "Shared memory (/dev/shm) of each container.":
    "每个容器的共享内存（/dev/shm）。",
  "Limits such as memlock.":
    "各类限制，例如 memlock。",
  "host: shared memory of the host.":
    "host：使用主机的共享内存。",
  "Whether one can log in to its containers.":
    "是否可以登录到它的容器。",
  "One a line: 7000 (the same port of the host), 8095:22 (this one), or auto:7000 (any free one).":
    "每行一个：7000（主机的同一端口）、8095:22（指定端口），或 auto:7000（任一空闲端口）。",
  "Host folders, one a line: /data/llm:/workspace/LLM, with :ro for reading only.":
    "主机目录，每行一个：/data/llm:/workspace/LLM，末尾加 :ro 表示只读。",
  "Environment variables.":
    "环境变量。",
  "Environment variables that are stored encrypted and never shown.":
    "加密保存、从不显示的环境变量。",
  "How often it is tried again after a failure of its own.":
    "自身失败后重试的次数。",
  "Jobs that must have succeeded before this one starts.":
    "必须先成功的任务，之后本任务才开始。",
  "It is stopped after this.":
    "运行超过这个时间就会被停止。",
  "How long its programs have to save what they have when it is stopped.":
    "停止时留给程序保存进度的时间。",
  "Of 100: who has more goes first.":
    "0 到 100：数值大的先运行。",
  "A Hugging Face model folder, or `hf:org/name`.":
    "Hugging Face 格式的模型目录，或 `hf:org/name`。",
  "Files, folders, artifact:NAME or hf:org/name, one a line; more can be said of each in YAML.":
    "文件、目录、artifact:名称 或 hf:org/name，每行一个；更多选项可在 YAML 中填写。",
  "How one model is spread over processes. YAML: `strategy: ddp` or `strategy: {name: colossalai_3d, tp: 2}`.":
    "模型如何分布到多个进程。YAML：`strategy: ddp` 或 `strategy: {name: colossalai_3d, tp: 2}`。",
  "naive (one process), ddp, or colossalai_ zero1, zero2, zero2_cpu, gemini, gemini_auto, 3d.":
    "naive（单进程）、ddp，或 colossalai_ 加 zero1、zero2、zero2_cpu、gemini、gemini_auto、3d。",
  "colossalai_3d: tensor-parallel ranks (each holds a slice of every matrix).":
    "colossalai_3d：张量并行的进程数（每个进程持有每个矩阵的一片）。",
  "colossalai_3d: pipeline stages (each holds some of the layers).":
    "colossalai_3d：流水线级数（每级持有一部分层）。",
  "colossalai_3d: sequence parallelism over the tensor-parallel ranks: none or split_gather.":
    "colossalai_3d：张量并行进程上的序列并行：none 或 split_gather。",
  "colossalai_3d: ZeRO stage over the data-parallel ranks: 0, 1, or 2.":
    "colossalai_3d：数据并行进程上的 ZeRO 阶段：0、1 或 2。",
  "colossalai_3d with pp > 1: pieces that a batch is cut into; 0 = one per row.":
    "colossalai_3d 且 pp > 1 时：一个批次切成几份；0 表示每行一份。",
  "MiB of gradients that ddp and ZeRO reduce in one message, and of weights in the smallest Gemini chunk.":
    "ddp 与 ZeRO 一次规约多少 MiB 梯度，也是 Gemini 最小权重块的大小。",
  "colossalai_gemini: share of optimizer states kept in host memory (0 to 1).":
    "colossalai_gemini：放在主机内存中的优化器状态比例（0 到 1）。",
  "colossalai_gemini: share of parameters kept in host memory (0 to 1); needs offload_optimizer: 1.0.":
    "colossalai_gemini：放在主机内存中的参数比例（0 到 1）；需要 offload_optimizer: 1.0。",
  "A collective that waits longer than this ends the run with an error.":
    "集合通信等待超过这个时间，运行就报错结束。",
  "An adapter in PEFT's format, of anybody's making, that is merged into the model before anything else.":
    "PEFT 格式的适配器（不论由谁训练），最先合并进模型。",
  "Low-rank adapters on linear layers; everything else stays frozen.":
    "在线性层上训练低秩适配器，其余权重全部冻结。",
  "Inner size of the two matrices that are added to each layer; `lora: 16` is short for it.":
    "每层所加两个矩阵的内维；`lora: 16` 是它的简写。",
  "Updates are scaled by alpha / rank; null: 2 × rank.":
    "更新量按 alpha / rank 缩放；null：2 × rank。",
  "Share of the adapter's inputs that are left out while training.":
    "训练时适配器输入被随机丢弃的比例。",
  "Names of the layers' last parts (q_proj, c_attn, …); auto: every linear layer inside the blocks.":
    "层名的最后一段（q_proj、c_attn 等）；auto：各块内的所有线性层。",
  "Also export the merged model (with its logits checked), beside the adapter.":
    "除适配器外，也导出合并后的模型（并校验其 logits）。",
  "When held-out data is evaluated, and how much of it.":
    "何时在留出数据上评估，以及评估多少。",
  "Steps between evaluations; 0: only at the end. Nothing is evaluated when there is no held-out data.":
    "两次评估间隔的步数；0：只在最后。没有留出数据时不评估。",
  "Held-out batches of each evaluation at most; null: all.":
    "每次评估最多用多少个留出批次；null：全部。",
  "Also before the first step, for the figure to compare with.":
    "第一步之前也评估一次，以便比较。",
  "When the whole state is saved, and what is kept.":
    "何时保存完整状态，保留哪些。",
  "Steps between checkpoints; 0: only when stopped by a signal or at the end.":
    "两次检查点间隔的步数；0：只在收到停止信号或结束时保存。",
  "Newest checkpoints kept.":
    "保留最新的几个检查点。",
  "Also keep the one with the lowest held-out loss.":
    "另外保留留出损失最低的那个。",
  "Also save the trainer's state after the last step (to train on with more steps).":
    "最后一步之后也保存训练器状态（以便之后继续训练）。",
  "Where figures go besides the event lines.":
    "除事件行外，指标还写到哪里。",
  "Steps between metric lines; each holds the mean since the last.":
    "两行指标间隔的步数；每行是上次以来的均值。",
  "Write the figures to `tensorboard/` in the run folder.":
    "把指标写入运行目录下的 `tensorboard/`。",
  "A Weights & Biases project; used when WANDB_API_KEY is set.":
    "Weights & Biases 项目名；设置了 WANDB_API_KEY 时使用。",
  "Where everything is written; null: $NAVARCH_RUN_DIR, or ./run.":
    "所有输出的目录；null：$NAVARCH_RUN_DIR，否则 ./run。",
  "auto: the newest checkpoint of the run folder, if there is one; else a checkpoint's path; null: start anew ($NAVARCH_RESUME is used when this is null).":
    "auto：运行目录中最新的检查点（如果有）；也可写检查点路径；null：重新开始（此时采用 $NAVARCH_RESUME）。",
  "How long, how fast and in which precision to train.":
    "训练多久、多快、用什么精度。",
  "Passes over the data; a fraction is allowed.":
    "遍历数据的次数；可以是小数。",
  "Exactly this many optimizer steps, over as many passes as that takes; null: by `epochs`.":
    "恰好这么多优化器步数，需要几遍数据就几遍；null：由 `epochs` 决定。",
  "Learning rate at its highest, after the warm-up. With LoRA about ten times as much is usual.":
    "预热之后的最高学习率。使用 LoRA 时通常取约十倍。",
  "How it falls after the warm-up, to min_lr.":
    "预热之后如何降到 min_lr。",
  "Below 1: a fraction of all steps; else a number of steps.":
    "小于 1：占总步数的比例；否则为步数。",
  "Where cosine and linear end.":
    "cosine 与 linear 的终点。",
  "On matrices only; never on biases, norms and embeddings.":
    "只作用于矩阵，不作用于偏置、归一化层和嵌入。",
  "AdamW's decay of the means of gradients and of their squares.":
    "AdamW 中梯度均值与平方均值的衰减系数。",
  "AdamW's smallest divisor.":
    "AdamW 分母的下限。",
  "Gradients are scaled down to this global norm; 0: no clipping.":
    "梯度按全局范数缩小到这个值；0：不裁剪。",
  "Tokens of one document at most; data.over_long says what becomes of longer ones: auto splits them in pt and cuts them in the other stages, and the log counts them.":
    "单个文档最多的 token 数；更长的由 data.over_long 决定：auto 在 pt 中切分，在其他阶段截断，日志中会计数。",
  "Fill rows of fixed length with whole documents, which attend only within themselves.":
    "用完整文档填满定长的行，各文档只在自身内部做注意力。",
  "Tokens of one packed micro-batch on one rank; null: batch_size × max_length.":
    "单个进程一个打包微批的 token 数；null：batch_size × max_length。",
  "Documents (pairs, for rm and dpo) of one micro-batch on one rank, without packing.":
    "不打包时，单个进程一个微批的文档数（rm 与 dpo 为配对数）。",
  "Micro-batches per optimizer step.":
    "每个优化器步的微批数。",
  "Of the data's order, of new weights and of dropout.":
    "决定数据顺序、新权重与 dropout 的随机种子。",
  "auto: bf16 on a GPU, fp32 on a CPU.":
    "auto：GPU 上 bf16，CPU 上 fp32。",
  "Recompute instead of keeping: nothing, all but matrix products and attention, or all but block inputs.":
    "用重算代替保存：不重算；除矩阵乘与注意力外都重算；除块输入外都重算。",
  "torch.compile of each block and of the loss; auto: on a GPU.":
    "对每个块与损失使用 torch.compile；auto：在 GPU 上启用。",
  "Tokens whose logits exist at one time in the loss; null: 8192, with full activation checkpointing 4096.":
    "计算损失时同时存在 logits 的 token 数；null：8192，完全激活检查点时 4096。",
  "NEFTune's alpha: uniform noise of ±alpha/√(length × width) on embeddings while training (usually 5); 0: off.":
    "NEFTune 的 alpha：训练时给嵌入加 ±alpha/√(长度 × 宽度) 的均匀噪声（通常取 5）；0：关闭。",
  "Prompts that are answered greedily before and after training, to see what changed.":
    "训练前后各贪心回答一次的提示，用来看变化。",
  "Questions, each the first turn of a conversation.":
    "问题列表，每个是一段对话的第一轮。",
  "Tokens of an answer at most.":
    "一个回答最多的 token 数。",
  "Also at each N-th evaluation; 0: only before and after.":
    "每隔 N 次评估也回答一次；0：只在训练前后。",
  "The reward model's objective on pairs.":
    "奖励模型在配对上的目标函数。",
  "log_sig: −log σ(r_c − r_r − margin), Ouyang et al. 2022; log_exp: the same as log(1 + exp(r_r − r_c + margin)), the form that coati uses.":
    "log_sig：−log σ(r_c − r_r − margin)，Ouyang 等 2022；log_exp：等价的 log(1 + exp(r_r − r_c + margin))，即 coati 的写法。",
  "By how much the chosen answer's score should win (Llama 2, eq. 2); a row's own `margin` field comes first.":
    "被选回答的分数应高出多少（Llama 2 式 2）；数据行自带的 `margin` 字段优先。",
  "Weight of (r_c + r_r)², which keeps scores around zero (Eisenstein et al. 2023; 0.01 is usual).":
    "(r_c + r_r)² 的权重，使分数保持在零附近（Eisenstein 等 2023；通常 0.01）。",
  "normal: N(0, 1/(d+1)), Stiennon et al. 2020.":
    "normal：N(0, 1/(d+1))，Stiennon 等 2020。",
  "frozen: only the head learns. With a few hundred pairs that generalises better than training all weights; it wants a larger train.lr (1e-3), about ten epochs and head_init: zero.":
    "frozen：只训练打分头。只有几百对数据时，比训练全部权重泛化更好；此时应取较大的 train.lr（1e-3）、约十个 epoch，并设 head_init: zero。",
  "Probability that a pair's label is flipped (conservative DPO).":
    "配对标签被颠倒的概率（保守 DPO）。",
  "auto: the model without its adapter under LoRA, else log-probs computed once before training.":
    "auto：LoRA 下为去掉适配器的模型，否则在训练前计算一次对数概率。",
  "The `train` section of a PPO run: how much is rolled out, and how it is learned from.":
    "PPO 的 `train` 部分：采样多少，如何从中学习。",
  "Passes over the prompts.":
    "遍历提示的次数。",
  "Stop after this many steps (one step = one rollout with its updates) whatever `epochs` says.":
    "到这么多步就停止（一步 = 一次采样及其更新），不管 `epochs` 是多少。",
  "Completions per step, over all ranks.":
    "每步的回答数，所有进程合计。",
  "Completions of each prompt.":
    "每个提示的回答数。",
  "Completions per optimizer update, over all ranks.":
    "每次优化器更新的回答数，所有进程合计。",
  "Passes over each rollout.":
    "每次采样被学习的遍数。",
  "Most tokens in one forward-backward on one rank; changes speed and memory, not the result. null: as many as fit into the GPU's free memory, up to 32768 (16384 on a CPU).":
    "单个进程一次前向反向的最多 token 数；只影响速度与显存，不影响结果。null：按空闲显存尽量多，上限 32768（CPU 上 16384）。",
  "Most tokens in one scoring forward on one rank.":
    "单个进程一次打分前向的最多 token 数。",
  "Tokens of a prompt, template included.":
    "提示的 token 数上限，含模板。",
  "Prompts above max_prompt_length: stop at start and name the row, or leave them out and say how many.":
    "超过 max_prompt_length 的提示：启动时停止并指出该行，或略去并说明数量。",
  "The actor's learning rate at its highest, after the warm-up.":
    "预热之后 actor 的最高学习率。",
  "Below 1: a fraction of all optimizer updates; else a number of updates.":
    "小于 1：占全部优化器更新的比例；否则为更新次数。",
  "Where linear and cosine end (a critic's ends at the same share of its own rate).":
    "linear 与 cosine 的终点（critic 以相同比例结束）。",
  "Gradients are scaled down to this global norm.":
    "梯度按全局范数缩小到这个值。",
  "Discount of a token's reward for the token before it.":
    "折扣因子：一个 token 的奖励传到前一个 token 时的折扣。",
  "GAE's λ: 1 takes whole returns, 0 the critic's next value alone (Schulman et al. 2016).":
    "GAE 的 λ：1 取完整回报，0 只取 critic 的下一个值（Schulman 等 2016）。",
  "A token's ratio of new to old probability counts within 1 ± this (Schulman et al. 2017).":
    "新旧概率之比只在 1 ± 此值内计入（Schulman 等 2017）。",
  "Lower bound c·A of the objective where A < 0 (c above 1, usually 3); null: off.":
    "A < 0 时目标的下界 c·A（c 大于 1，通常 3）；null：关闭。",
  "Weight of the policy's entropy, which is to stay high.":
    "策略熵的权重，使熵保持较高。",
  "Over the action tokens of the whole rollout, on all ranks.":
    "在整次采样的动作 token 上白化，跨所有进程。",
  "Divide per-token rewards by their standard deviation over the whole rollout (the mean is kept).":
    "把逐 token 奖励除以整次采样的标准差（均值不变）。",
  "Steps at the start that train the critic alone.":
    "开头只训练 critic 的步数。",
  "auto: take the engine's own log-probs when they equal a trainer forward at the first step; rescore: never.":
    "auto：若第一步时推理引擎的对数概率与训练前向一致就直接采用；rescore：从不采用。",
  "Largest mean |difference| per token allowed by that check; default 1e-4 in fp32 and 2e-2 in bf16.":
    "该检查允许的每 token 平均绝对差；默认 fp32 为 1e-4，bf16 为 2e-2。",
  "torch.compile of each block and of the head; packed batches are then filled up to few different lengths.":
    "对每个块与输出头使用 torch.compile；打包批次会补齐到少数几种长度。",
  "Tokens whose logits exist at one time.":
    "同时存在 logits 的 token 数。",
  "Of the prompts' order and of what is sampled.":
    "决定提示顺序与采样结果的随机种子。",
  "Steps between tables of completions (in the log, and in `samples.jsonl` of the run folder); 0: never.":
    "两张回答样本表间隔的步数（写入日志与运行目录的 `samples.jsonl`）；0：从不。",
  "Completions in such a table.":
    "样本表中的回答数。",
  "Where the score of a completion comes from: `model` or `function`, or a weighted sum with `functions`.":
    "回答的分数从何而来：`model` 或 `function`，或与 `functions` 的加权和。",
  "A reward model with its head, as the rm stage writes it.":
    "带打分头的奖励模型，由 rm 阶段写出。",
  "`package.module:function` or `/path/to/file.py:function`, called as function(prompts, completions, rows).":
    "`package.module:function` 或 `/path/to/file.py:function`，以 function(prompts, completions, rows) 调用。",
  "Keyword arguments that the function also gets.":
    "额外传给该函数的关键字参数。",
  "Allow a reward model with another tokenizer or template: completions are decoded and tokenised again for it.":
    "允许奖励模型使用另一种分词器或模板：回答会先解码，再重新分词。",
  "Scores are limited to ± this, after normalisation; null: not at all.":
    "归一化之后分数限制在 ± 此值；null：不限制。",
  "running: by the mean and variance of every score so far (kept in checkpoints); rollout: of this rollout alone.":
    "running：用迄今所有分数的均值与方差（保存在检查点中）；rollout：只用本次采样的。",
  "Taken off the score of a completion that reached max_new_tokens without a stop token.":
    "回答到达 max_new_tokens 仍未出现停止 token 时扣除的分数。",
  "The value model: what it starts from and how it learns.":
    "价值模型：从什么开始，如何学习。",
  "Its initial weights; default: the reward model, or the actor when the reward is a function.":
    "初始权重；默认为奖励模型；奖励是函数时为 actor。",
  "The value head starts at zero, or as the reward model's own head.":
    "价值头从零开始，或沿用奖励模型的打分头。",
  "The critic's learning rate; it has an optimizer of its own.":
    "critic 的学习率；它有自己的优化器。",
  "null: as the actor's `lora` section; 0: train all weights; else a rank of its own.":
    "null：与 actor 的 `lora` 部分相同；0：训练全部权重；否则为自己的秩。",
  "A new value may move this far from the old one before its loss stops counting; null: no clipping.":
    "新价值偏离旧价值超过此值后，其损失不再计入；null：不裁剪。",
  "Scales the value loss. The critic has an optimizer of its own, so with Adam it matters little beyond clipping.":
    "价值损失的系数。critic 有自己的优化器，所以用 Adam 时除裁剪外影响很小。",
  "The penalty for leaving the reference, taken off each token's reward.":
    "偏离参考模型的惩罚，从每个 token 的奖励中扣除。",
  "Reward taken off for each nat of KL.":
    "每一 nat 的 KL 扣除的奖励。",
  "adaptive: the coefficient follows the KL towards `target`.":
    "adaptive：系数随 KL 调整，使其趋向 `target`。",
  "adaptive: the wanted KL in nats per completion (sum over its tokens).":
    "adaptive：希望的每个回答的 KL（nats，对其 token 求和）。",
  "adaptive: completions over which the coefficient can about double or halve at ±0.2 of error.":
    "adaptive：误差为 ±0.2 时，系数约加倍或减半所需的回答数。",
  "How a token's KL is estimated from one sample: log r, ½ (log r)², or r − 1 − log r (Schulman 2020).":
    "如何由一个样本估计 token 的 KL：log r、½ (log r)² 或 r − 1 − log r（Schulman 2020）。",
  "InstructGPT's side loss on SFT or PT data, added to each actor update; off while `coef` is 0.":
    "InstructGPT 在 SFT 或 PT 数据上的附加损失，加在每次 actor 更新中；`coef` 为 0 时关闭。",
  "Documents or conversations, as data.sources.":
    "文档或对话，写法同 data.sources。",
  "Weight of the language-model loss beside the policy loss (coati's 0.9 beside 0.1 is 9.0 here).":
    "语言模型损失相对策略损失的权重（coati 的 0.9 比 0.1，在这里是 9.0）。",
  "Documents per actor update, over all ranks.":
    "每次 actor 更新的文档数，所有进程合计。",
  "The model that KL is measured from; default: the actor as it starts (its adapter off, under LoRA).":
    "计算 KL 的参考模型；默认为初始的 actor（LoRA 下关闭适配器）。",
  "Options of one generation.":
    "生成选项。",
  "Tokens of a completion at most.":
    "一个回答最多的 token 数。",
  "Logits are divided by it; 0: always the likeliest token.":
    "logits 除以它；0：总取最可能的 token。",
  "Draw from the K likeliest tokens only; 0: from all.":
    "只从最可能的 K 个 token 中抽取；0：全部。",
  "Draw from the likeliest tokens that have this share of the probability together; 1: from all.":
    "只从累计概率达到此值的最可能 token 中抽取；1：全部。",
  "Tokens less likely than this share of the likeliest one's probability are left out.":
    "概率低于最高概率的这个比例的 token 被排除。",
  "Above 1: tokens that are in the text already become less likely (CTRL); 1: off.":
    "大于 1：已出现的 token 概率降低（CTRL）；1：关闭。",
  "Texts that end a completion.":
    "使回答结束的文本。",
  "Tokens that end a completion; null: the template's.":
    "使回答结束的 token；null：由模板决定。",
  "Model folder, artifact:NAME or hf:org/name.":
    "模型目录、artifact:名称 或 hf:org/name。",
  "LoRA adapter folder, merged into the model at load.":
    "LoRA 适配器目录，加载时合并进模型。",
  "Address to listen on.":
    "监听地址。",
  "Port to listen on.":
    "监听端口。",
  "auto: bf16 on a GPU, fp32 elsewhere.":
    "auto：GPU 上 bf16，其他设备 fp32。",
  "Weight-only quantization at load; a model quantized ahead needs none.":
    "加载时只量化权重；事先量化好的模型不需要。",
  "Weights that share a scale in int4 (32, 64 or 128).":
    "int4 中共用一个缩放系数的权重数（32、64 或 128）。",
  "Requests decoded together at most, fewer where memory is short; more wait in the queue.":
    "同时解码的最多请求数，内存不足时更少；其余排队。",
  "Tokens of prompt + completion; null: the model's context, at most 4096, less where memory is short.":
    "提示加回答的 token 数；null：模型的上下文长度，至多 4096，内存不足时更少。",
  "Requests that may wait; beyond it, 429 with Retry-After.":
    "可以排队的请求数；超出则返回 429 与 Retry-After。",
  "Completion length when a request gives none.":
    "请求未指定时的回答长度。",
  "Processes that speak HTTP, beside the one that decodes (0: by the cores, 1 to 4).":
    "除解码进程外处理 HTTP 的进程数（0：按核数取 1 到 4）。",
  "Seconds that running requests get after SIGTERM.":
    "收到 SIGTERM 后留给正在处理的请求的秒数。",
  "Seed of requests that give none.":
    "请求未指定种子时使用的种子。",
  "Environment variable that holds the key clients must send as bearer token.":
    "保存客户端须以 bearer token 发送的密钥的环境变量名。",
  "seconds, or with a unit such as 2m":
    "秒，或带单位，如 2m",
  "seconds, or with a unit such as 12h":
    "秒，或带单位，如 12h",
  "tokens":
    "token 数",
  "a fraction of all steps, or steps":
    "占总步数的比例，或步数",
  "bytes, or with a unit such as 64GB":
    "字节，或带单位，如 64GB",
  "bytes, or with a unit such as 16GB":
    "字节，或带单位，如 16GB",
  "The `train` section of a GRPO run: how much is rolled out, and how it is learned from.":
    "GRPO 的 `train` 部分：采样多少，如何从中学习。",
  "Completions of each prompt: the group G in which they are compared.":
    "每个提示的回答数：在这一组 G 个回答之内比较。",
  "Completions per optimizer update, over all ranks; as many as rollout_batch_size: one update a step, on policy.":
    "每次优化器更新的回答数，所有进程合计；与 rollout_batch_size 相同时每步更新一次，即同策略。",
  "How completions of one prompt are compared, and what of it is learned.":
    "同一提示的回答如何比较，从中学习什么。",
  "A score minus the mean of its group (GRPO), or minus the mean of the others in it (RLOO).":
    "分数减去组内均值（GRPO），或减去组内其他回答的均值（RLOO）。",
  "Advantages are divided by the scores' deviation in the group (GRPO) or in the rollout, or not at all (Dr. GRPO); auto: group with group_mean, none with leave_one_out.":
    "优势除以组内（GRPO）或整次采样的分数标准差，或不除（Dr. GRPO）；auto：group_mean 时为 group，leave_one_out 时为 none。",
  "Mean over all tokens (DAPO), mean over each completion and then over completions (GRPO), or sums divided by max_new_tokens, so that no length is favoured (Dr. GRPO).":
    "对所有 token 取均值（DAPO），先对每个回答再对回答取均值（GRPO），或求和后除以 max_new_tokens，不偏好任何长度（Dr. GRPO）。",
  "Ratios of new to old probability of each token, or their geometric mean over the completion (GSPO).":
    "每个 token 的新旧概率比，或其在整个回答上的几何平均（GSPO）。",
  "A ratio counts down to 1 − this (GSPO: 3e-4).":
    "概率比的下限为 1 − 此值（GSPO：3e-4）。",
  "And up to 1 + this: DAPO's clip-higher leaves unlikely tokens room to grow (GRPO: 0.2, GSPO: 4e-4).":
    "上限为 1 + 此值：DAPO 的 clip-higher 给小概率 token 留出增长空间（GRPO：0.2，GSPO：4e-4）。",
  "Groups whose scores are all alike teach nothing: draw other prompts instead, in at most this many further rollouts of a step (DAPO); 0: keep them.":
    "分数全部相同的组学不到东西：改抽其他提示，每步最多再采样这么多次（DAPO）；0：保留这些组。",
  "Learn nothing from completions that reached max_new_tokens without a stop token (DAPO).":
    "不从到 max_new_tokens 仍未停止的回答中学习（DAPO）。",
  "Score falls by up to 1 over the last this many tokens before max_new_tokens (DAPO's soft punishment); 0: off.":
    "在 max_new_tokens 之前的最后这么多 token 内，分数最多降低 1（DAPO 的软惩罚）；0：关闭。",
  "The penalty for leaving the reference; with `coef: 0` no reference is loaded.":
    "偏离参考模型的惩罚；`coef: 0` 时不加载参考模型。",
  "Weight of the KL (DeepSeekMath: 0.04; rules that can be checked need none, a reward model does).":
    "KL 的权重（DeepSeekMath：0.04；可验证的规则不需要，奖励模型需要）。",
  "Each token's KL is added to the loss (GRPO), or a completion's is taken off its score (RLOO).":
    "每个 token 的 KL 加到损失上（GRPO），或从回答的分数中减去整个回答的 KL（RLOO）。",
  "How a token's KL is estimated from one sample (Schulman 2020); auto: k3 in the loss, k1 in the reward.":
    "如何由一个样本估计 token 的 KL（Schulman 2020）；auto：损失中用 k3，奖励中用 k1。",
  "More functions, each with function, weight and arguments; the score is the weighted sum of all sources.":
    "更多函数，每个有 function、weight 与 arguments；总分是所有来源的加权和。",
  "Of the score of `model` or `function`, beside `functions`.":
    "与 `functions` 并用时，`model` 或 `function` 的分数的权重。",
  "What is learned from pairs.":
    "从配对中学习什么。",
  "dpo: direct preference optimization, Rafailov et al. 2023, eq. 7; orpo: likelihood of the chosen answer and odds ratio of the two, without a reference, Hong et al. 2024, eq. 6 (it wants a larger train.lr, about 8e-6).":
    "dpo：直接偏好优化，Rafailov 等 2023 式 7；orpo：被选回答的似然与两者的优势比，无需参考模型，Hong 等 2024 式 6（需要较大的 train.lr，约 8e-6）。",
  "dpo: how strongly the model is held to the reference: the smaller, the further it may go; orpo: weight of the odds ratio beside the likelihood (the paper's λ).":
    "dpo：模型被参考模型约束的强度，越小可以偏离得越远；orpo：优势比相对似然的权重（论文中的 λ）。",
};
