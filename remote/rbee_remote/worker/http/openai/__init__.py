"""OpenAI's API on the worker's socket, for clients that speak it.

    GET  /v1/models, /v1/models/ID     the worker's one model
    POST /v1/chat/completions          messages -> answers, streamed or whole
    POST /v1/completions               text or tokens -> their continuation, likewise
    POST /v1/embeddings                texts or tokens -> vectors of length 1

`model` is the worker's model ref, or left out. What a request does not say is as in llama-server, which is as in
`protocol.Sampling` (temperature 0.8, top_k 40, top_p 0.95, min_p 0.05); each field of it can be given in the body under
its own name. Fields that are unknown are ignored; one of the wrong type is an error that names it.

Unlike /v1/inference, a client that goes away has canceled: these clients never come back for the rest.
"""
