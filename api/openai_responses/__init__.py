"""Pictures in OpenAI's Responses API: reads the request (`requests`), draws the answer (`answers`) in its objects and events
(`objects`), and lets a language model draw (`tool`). The image API's own responses are in `api.responses`."""
