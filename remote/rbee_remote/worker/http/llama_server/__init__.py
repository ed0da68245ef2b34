"""What llama-server has beside OpenAI's API.

    POST /completion                              a prompt -> its continuation, in llama-server's own words
    POST /infill                                  what stands before a gap and behind it -> what belongs there
    POST /tokenize, /detokenize, /apply-template  a text's tokens, and a chat as text
    GET  /props                                   the model, its context and its template

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""
