# Which of llama.cpp's tests are not for `edge serve`, and the end of the servers after the last test.
import pytest
from utils import ServerProcess

TEMPLATE = "names a chat template; `edge serve` uses the model's own"
VERBOSE = "reads the prompt from llama.cpp's debugging output"
PICTURES = "needs a model that reads pictures"
THINKING = "needs a model that thinks"
NATIVE = "is about fields of llama.cpp's own protocol (/completion), which `edge serve` does not speak"
ROUTER = "is about llama.cpp's router process"
CORS = "no page may use `edge serve` unless its origin is listed (tests/unit/serve/test_security.py)"
RACE = "looks at the slots after a fixed time, which depends on the speed of the machine"

NOT_PORTABLE = {
    "test_chat_template": VERBOSE,
    "test_chat_template_assistant_prefill": VERBOSE,
    "test_chat_template_continue_final_message_vllm_compat": "an answer is never continued: continue_final_message is an error 400",
    "test_apply_chat_template": TEMPLATE,
    "test_verbose_debug": VERBOSE,
    "test_return_progress": "return_progress is unknown; progress is at /status",
    "test_responses_stream_with_llama_telemetry": "return_progress is unknown; progress is at /status",
    "test_tokenize_with_bos": "SmolLM2 begins no text with a token of its own",
    "test_anthropic_vision_base64_with_multimodal_model": PICTURES,
    "test_anthropic_empty_messages": "an empty conversation is an error 400, as Anthropic's own server has it",
    "test_anthropic_thinking_history_in_count_tokens": THINKING,
    "test_anthropic_thinking_history_in_template": THINKING,
    "test_anthropic_thinking_with_reasoning_model": THINKING,
    "test_access_static_assets_without_api_key": "llama.cpp's page has other files; that of `edge serve` is one",
    "test_cors_options": CORS,
    "test_cors_origins_localhost_reflects": ROUTER,
    "test_cors_origins_localhost_rejects": ROUTER,
    "test_cors_origins_defaults_to_localhost_with_tools_enabled": ROUTER,
    "test_cors_proxy_only_forwards_explicit_proxy_headers": "there is no proxy",
    "test_local_media_file": PICTURES,
    "test_server_multiple_addresses": "`edge serve` listens on one address",
    "test_server_props": NATIVE,
    "test_server_slots": NATIVE,
    "test_load_split_model": "loads a model from the hub",
    "test_no_ui": "the page cannot be turned off",
    "test_server_model_aliases_and_tags": "a model is called like its file",
    "test_completion": NATIVE,
    "test_completion_stream": NATIVE,
    "test_completion_stream_with_openai_library_stops": "needs a model of 2 GB",
    "test_consistent_result_different_batch_size": "the engine chooses its batches",
    "test_json_prompt_no_mtmd": NATIVE,
    "test_completion_with_tokens_input": "a prompt is a text; token ids are an error 400",
    "test_completion_parallel_slots": RACE,
    "test_completion_unified": NATIVE,
    "test_completion_response_fields": NATIVE,
    "test_n_probs": NATIVE,
    "test_n_probs_stream": NATIVE,
    "test_n_probs_post_sampling": NATIVE,
    "test_n_probs_post_backend_sampling": NATIVE,
    "test_completion_prompt_cache": NATIVE,
}
CASES = {
    "chatml]": TEMPLATE,
    "This is not a chat template, it is]": TEMPLATE,
    "test_invalid_chat_completion_req[messages7]": "two messages of the assistant in a row are taken",
    "test_logit_bias[False-False]": NATIVE,
    "test_logit_bias[False-True]": NATIVE,
    "test_logit_bias[True-False]": NATIVE,
}
"""End of the name of a case -> reason."""


def pytest_collection_modifyitems(items):
    for item in items:
        reason = NOT_PORTABLE.get(item.originalname) or next(
            (reason for end, reason in CASES.items() if item.name.endswith(end)), None
        )
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"not portable: {reason}"))


@pytest.fixture(scope="session", autouse=True)
def end_of_server():
    yield
    ServerProcess.end()


@pytest.fixture(autouse=True)
def own_server(request):
    """Start a server for what has to be the same four times: one that had the prompt before computes less, with other last bits."""
    if request.node.originalname == "test_consistent_result_same_seed":
        ServerProcess.end()
