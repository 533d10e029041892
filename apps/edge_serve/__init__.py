"""A local server that speaks the protocols of OpenAI, Anthropic and Ollama.

server.py      the process: socket, signals, start and end; connection.py, bounds on connections
app.py         routes, and what every request gets; call.py, one request while it is answered
service.py     what all requests share; offer.py, the models by name
answers.py     a reply for a request; asked.py, what it is asked for: tools, form, thinking
embedding.py   vectors for a request
sampling.py    how tokens are chosen; lora.py, with which adapters; probabilities.py, how likely they were
documents.py   collections that a request names, and the passages of its answer
client.py      notices that a client has gone
bodies.py      bodies, read within bounds; limits.py, the bounds
security.py    Host, Origin and keys; keys.py, the keys
errors.py      what goes wrong; dialects.py, how each protocol writes it
batch.py       files of requests (OpenAI's batches); inside.py, the application asked without a socket
metrics.py     counters for Prometheus; access.py, the access log; state.py, health and metrics
tracing.py     spans for OpenTelemetry, if they are asked for
status.py      the page at `/`, page.html, and what it shows
openapi.py     the description of all this for programs; operations.py, each endpoint; described.py, what it answers
openai/        OpenAI's protocol; anthropic/, Anthropic's; ollama/, Ollama's
"""
