"""OpenAI's API on the worker's socket, for clients that speak it.

    GET  /v1/models, /v1/models/ID     the worker's one model
    POST /v1/chat/completions          messages -> answers, streamed or whole
    POST /v1/completions               text or tokens -> their continuation, likewise
    POST /v1/embeddings                texts or tokens -> vectors of length 1

Each is served without /v1 too, and GET /health as in llama-server. `model` may be any name: a worker has one. What a
request does not say is as in llama-server, which is as in `protocol.Sampling` (temperature 0.8, top_k 40, top_p 0.95,
min_p 0.05); each field of it can be given in the body under its own name. Fields that are unknown are ignored; one of
the wrong type is an error that names it.

What an answer is made of, reasoning, content and calls, is split in `requests`; here it is put into OpenAI's words.

Unlike /v1/inference, a client that goes away has canceled: these clients never come back for the rest.
"""
