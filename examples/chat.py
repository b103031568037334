"""
Ask a converted model a question. It needs torch and transformers only: the model folder brings its own code.

    python examples/chat.py MODEL_FOLDER "What is the capital of France?" [--max-new-tokens 64]
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("question")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": args.question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(args.question, return_tensors="pt")

    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    start = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, streamer=streamer)
    new_tokens = output.shape[1] - inputs["input_ids"].shape[1]
    speed = new_tokens / (time.perf_counter() - start)
    print(f"[{new_tokens} tokens, {speed:.1f} tokens/s, code: {type(model).__module__}]")


if __name__ == "__main__":
    main()
