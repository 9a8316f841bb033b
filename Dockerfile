# The chat server as an image. docker compose up --build -d  starts it; docs/service.md says more.
#   --build-arg TORCH_INDEX=cpu     torch without CUDA (default); cu130 and others: https://pytorch.org/get-started
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY constraints.txt ./
# torch alone from its own index; what it needs comes from PyPI with the rest
RUN pip install --no-cache-dir --no-deps -c constraints.txt torch --index-url "https://download.pytorch.org/whl/$TORCH_INDEX"
COPY pyproject.toml setup.cfg README.md LICENSE NOTICE train_chatbot.py gpt_generate.py ./
COPY gpt2chat gpt2chat
RUN pip install --no-cache-dir -c constraints.txt ".[serve]"
# The first answer compiles the native decoder for this processor and keeps it; on another one torch computes.
WORKDIR /opt/gpt2chat
RUN GPT2CHAT_CACHE=/opt/gpt2chat gpt2chat generate "Hello" --model demo --device cpu --max_new_tokens 4 \
    && mkdir -p /opt/gpt2chat/packs

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/gpt2chat /opt/gpt2chat
# what the server may write: downloads, weights in fewer bits, app.log
RUN mkdir -p /cache /logs /models && chown -R 1000:1000 /cache /logs /opt/gpt2chat/packs
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    GPT2CHAT_CACHE=/opt/gpt2chat \
    TRAINING_DIR=/models \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME ["/cache", "/logs"]
WORKDIR /models
USER 1000:1000
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import json, urllib.request as u; assert json.load(u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:7860/health', timeout=4))['ready']"]
# All addresses of the container: without GPT2CHAT_API_KEY the server refuses to start, unless it is told --insecure.
ENTRYPOINT ["gpt2chat", "serve", "--host", "0.0.0.0", "--port", "7860"]
CMD ["demo"]
