from chat_handler.service import service

if __name__ == "__main__":
    service.main()
